"""A small ONNX graph under construction: constants stored once, unique names, written in one go.

In a network of a few hundred thousand weights names and settings are a tenth of the file. So only layers, their weights
and their biases are called as in the network; what stands between them is numbered, and defaults are left out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qkd.errors import ExportError

PLAIN_OPSET = 17
INT4_OPSET = 21
INT2_OPSET = 25
IR_VERSION = {PLAIN_OPSET: 8, INT4_OPSET: 10, INT2_OPSET: 13}
MINIMUM_ONNXRUNTIME = {PLAIN_OPSET: "1.19", INT4_OPSET: "1.23", INT2_OPSET: "1.24"}

DEFAULTS = {"strides": {1}, "dilations": {1}, "pads": {0}, "group": {1}}
"""Of convolutions and pools alike: what every axis has where nothing is said."""
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
        """The wanted name, with a number behind it where it is already taken (a layer that is called twice)."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}.call{count}"
        self._names.add(name)
        return name

    def constant(self, value: np.ndarray | np.generic, name: str = "") -> str:
        """The name of an initialiser with this value, a number if none is given; an equal one that is there is used again."""
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

    def step(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node that stands between layers and returns the number of its output."""
        output = self._number()
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **_needed(attributes)))
        return output

    def _number(self) -> str:
        self._numbered += 1
        return f"%{self._numbered}"

    def takes(self, kind: int, shape: Sequence[int]) -> None:
        """The input is of this type and (N, *shape), instead of float images."""
        self._input = kind, tuple(shape)

    def needs(self, opset: int) -> None:
        self.opset = max(self.opset, opset)

    def model(self, output: str, shape: Sequence[int], classes: Sequence[int], metadata: Mapping[str, str]) -> Any:
        """The checked model: one input, (N, *shape) floats unless ``takes`` said otherwise, and (N, *classes) floats out.

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
        """Removes what nothing reads, such as the float form of a tensor that is only padded as integers."""
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
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder you may write to"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return path


def load(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file (or the one given). Raises ExportError for a file that is missing or is not ONNX."""
    if isinstance(source, onnx.ModelProto):
        return source
    path = Path(source)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; name an .onnx file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{path}: not a valid ONNX model: {reason}; export it again") from error
    return model


def require_ours(model: onnx.ModelProto, where: str) -> None:
    """Raises ExportError for a model from somewhere else: its operators have no integer meaning here."""
    if model.producer_name != PRODUCER:
        found = model.producer_name or "an unnamed producer"
        raise ExportError(
            f"{where}: written by {found}, not exported here; any model can be timed, only exported ones proven"
        )
    target = next((entry.value for entry in model.metadata_props if entry.key == "target"), "")
    if target in ("tensorrt", "litert"):
        raise ExportError(
            f"{where}: written for {target}, whose kernels are not emulated here; the file for onnxruntime is proven"
        )
