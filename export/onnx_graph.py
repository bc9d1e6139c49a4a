"""An ONNX graph under construction, with constants stored once and unique names; and the reading and writing of files.

In a network of a few hundred thousand weights names and settings are a tenth of the file. So only layers, their weights
and their biases have the names of the network; nodes between them are numbered, and default attributes are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qkd.errors import ExportError, RunError
from qkd.export.targets import TARGETS
from qkd.storage.atomic import error_text, write_atomic

PLAIN_OPSET = 17
INT4_OPSET = 21
INT2_OPSET = 25
IR_VERSION = {PLAIN_OPSET: 8, INT4_OPSET: 10, INT2_OPSET: 13}
MINIMUM_ONNXRUNTIME = {PLAIN_OPSET: "1.19", INT4_OPSET: "1.23", INT2_OPSET: "1.24"}

DEFAULTS = {"strides": {1}, "dilations": {1}, "pads": {0}, "group": {1}}
"""Of convolutions and pools: the value of every axis that ONNX assumes for an attribute that is left out."""
PRODUCER = "qkd"
INPUT, OUTPUT = "images", "logits"


@final
class Graph:
    """Nodes and initialisers in the order in which they are added; every node has one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset = PLAIN_OPSET
        self._input: tuple[int, tuple[int, ...]] | None = None
        self._names: set[str] = {INPUT, OUTPUT}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._numbered = 0

    def name(self, wanted: str) -> str:
        """The wanted name, with a number behind it where it is taken already (a layer that is called twice)."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}.call{count}"
        self._names.add(name)
        return name

    def constant(self, value: np.ndarray | np.generic, name: str = "") -> str:
        """The name of an initialiser with this value; one of equal value is used again. Without a name it gets a number."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            self._constants[key] = self.name(name) if name else self._number()
            # order="C" and not ascontiguousarray: that would give a scalar a dimension, and QLinearAdd refuses it
            self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), self._constants[key]))
        return self._constants[key]

    def tensor(self, tensor: onnx.TensorProto) -> str:
        """Adds an initialiser of a type that numpy does not know (INT4, INT2)."""
        tensor.name = self.name(tensor.name)
        self.initializers.append(tensor)
        return tensor.name

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a layer and returns the name of its output, which is that of the layer."""
        name = self.name(name)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **_needed(attributes)))
        return name

    def unnamed(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node that stands between layers and returns the name of its output, a number."""
        output = self._number()
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **_needed(attributes)))
        return output

    def _number(self) -> str:
        self._numbered += 1
        return f"%{self._numbered}"

    def takes(self, kind: int, shape: Sequence[int]) -> None:
        """Makes the input a tensor of this type and of the shape (N, *shape), instead of float images."""
        self._input = kind, tuple(shape)

    def needs(self, opset: int) -> None:
        """Raises the operator set of the model to at least this one."""
        self.opset = max(self.opset, opset)

    def model(self, output: str, shape: Sequence[int], classes: Sequence[int], metadata: Mapping[str, str]) -> Any:
        """The checked model. Its input is (N, *shape) floats unless ``takes`` set another, its output (N, *classes) floats.

        N is symbolic.
        """
        self.nodes.append(helper.make_node("Identity", [output], [OUTPUT], name=OUTPUT))
        self._drop_unread()
        kind, size = self._input or (TensorProto.FLOAT, tuple(shape))
        inputs = [helper.make_tensor_value_info(INPUT, kind, ["N", *size])]
        outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", *classes])]
        graph = helper.make_graph(self.nodes, "qkd", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name=PRODUCER)
        model.ir_version = IR_VERSION[self.opset]
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _drop_unread(self) -> None:
        """Removes nodes and constants that nothing reads, such as the float form of a tensor that is padded as integers."""
        read, kept = {OUTPUT}, []
        for node in reversed(self.nodes):
            if node.output[0] in read:
                read.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = [tensor for tensor in self.initializers if tensor.name in read]


def _needed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that differ from what ONNX assumes without them."""
    return {
        name: value for name, value in attributes.items() if name not in DEFAULTS or set(_each(value)) != DEFAULTS[name]
    }


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def save(model: onnx.ModelProto, path: str | Path) -> Path:
    """Writes the model to a file, whole or not at all, and returns the path. Raises ExportError where it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, lambda file: file.write(model.SerializeToString()))
    except (OSError, RunError) as error:
        raise ExportError(
            f"{path}: cannot be written: {error_text(error)}; name a file in a folder you may write to",
            key="export.cannot-write",
        ) from error


def load(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file (or the one given). Raises ExportError for a file that is missing or is not ONNX."""
    if isinstance(source, onnx.ModelProto):
        return source
    path = Path(source)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; name an .onnx file", key="model.missing-file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise invalid(path, error) from error
    return model


def invalid(path: Path, error: Exception) -> ExportError:
    """The refusal of a file that is not a valid ONNX model."""
    return ExportError(
        f"{path}: not a valid ONNX model: {first_line(error)}; export it again", key="model.invalid-file"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require_provable(model: onnx.ModelProto, where: str) -> None:
    """Raises ExportError, naming ``where``, for a model that the emulator cannot run.

    That is one from elsewhere, since its operators have no integer meaning here, and one for another runtime's kernels.
    """
    if model.producer_name != PRODUCER:
        found = model.producer_name or "an unnamed producer"
        raise ExportError(
            f"{where}: written by {found}, not exported here; any model can be timed, only exported ones proven",
            key="model.not-exported-here",
        )
    name = next((entry.value for entry in model.metadata_props if entry.key == "target"), "")
    if name in TARGETS and not TARGETS[name].proven:
        raise ExportError(
            f"{where}: written for {name}, whose kernels are not emulated here; the file for onnxruntime is proven",
            key="model.other-target",
        )
