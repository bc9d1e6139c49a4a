"""The integer emulator: what onnxruntime computes for an exported file, in a second program that shares none of its code.

It reads ONNX nodes only. That its operators stand in the same files as the handlers that write those nodes shares no
code between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from qkd.errors import ExportError
from qkd.export.emulator_nodes import Operand, read_node, real
from qkd.export.onnx_graph import load, require_provable
from qkd.export.op_tables import operation_of
from qkd.export.session import Source, open_session, require_images
from qkd.export.uint8_input import FRONT

MEMORY = 2**18
"""Pixels in a batch, unless a batch size is given."""


def emulate(source: Source, images: np.ndarray, *, batch: int | None = None) -> np.ndarray:
    """Logits (N, classes) for images as the file takes them (float32, or uint8), equal to onnxruntime's bit for bit.

    Integer layers are computed here; an operator that stayed float has no integer meaning and is computed by onnxruntime,
    by itself. Raises ExportError for a file that was not exported here, and for images that the file does not take.
    """
    program = Program(source)
    images = require_images(images, program.kind)
    batch = batch or max(1, min(64, 3 * MEMORY // images[0].size))
    parts = [program.run(images[i : i + batch]) for i in range(0, len(images), batch)]
    return np.concatenate(parts)


@final
class Program:
    """A model ready to be emulated: its nodes in order, its constants evaluated once."""

    def __init__(self, source: Source) -> None:
        model = load(source)
        require_provable(model, "the model" if isinstance(source, onnx.ModelProto) else str(source))
        graph = model.graph
        opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.kind = np.uint8 if graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8 else np.float32
        self.shape = tuple(size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)[1:]
        self.constants: dict[str, Operand] = {t.name: _tensor(t) for t in graph.initializer}
        self.nodes = []
        for node in (read_node(proto, opset) for proto in graph.node):
            if all(name in self.constants for name in node.inputs):
                self.constants[node.output] = operation_of(node)(node, [self.constants[name] for name in node.inputs])
            else:
                self.nodes.append(node)
        self._last_reader = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits for one batch of images."""
        return self.tensors(images, {})[self.output]

    @torch.no_grad()
    def tensors(self, images: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The output and, for every tensor that is given, what is computed here from the given tensors before it.

        Integers that come from a float operator are left out: they prove nothing about integer kernels.
        """
        if images.shape[1:] != self.shape:
            raise ExportError(
                f"the model takes images of {self.shape}, not of {images.shape[1:]}", key="images.wrong-size"
            )
        values: dict[str, Operand] = {self.input: torch.from_numpy(np.ascontiguousarray(images, self.kind))}
        found: dict[str, np.ndarray] = {}
        for index, node in enumerate(self.nodes):
            operands = [values[name] if name in values else self.constants[name] for name in node.inputs]
            result = operation_of(node)(node, operands)
            from_float = (
                isinstance(operands[0], Tensor)
                and operands[0].is_floating_point()
                and node.inputs[0] not in (self.input, *FRONT)
            )
            if node.output == self.output or (node.output in given and not from_float):
                found[node.output] = real(result).numpy()
            values[node.output] = torch.from_numpy(given[node.output]) if node.output in given else result
            for name in node.inputs:
                if self._last_reader[name] == index:
                    values.pop(name, None)
        return found


@dataclass(frozen=True)
class Divergence:
    """A layer whose integers differ: its name, how many values differ of how many, and by how much at most."""

    layer: str
    different: int
    values: int
    largest: int

    def __str__(self) -> str:
        return f"{self.layer}: {self.different} of {self.values} integers differ, by up to {self.largest}"


def first_divergence(source: Source, images: np.ndarray) -> Divergence | None:
    """The first layer that gives other integers here than in onnxruntime, for one batch of images; None if there is none.

    Every layer gets the integers that onnxruntime computed before it, so each one is compared by itself, and integer
    layers are compared also where others stayed float.
    """
    model = onnx.ModelProto()
    model.CopyFrom(load(source))
    # a quantizer is named by the layer whose result it rounds
    layers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    names = list(layers)
    if not names:  # without names of outputs onnxruntime computes all
        return None
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    session = open_session(model)
    program = Program(source)
    images = require_images(images, program.kind)
    theirs = dict(zip(names, session.run(names, {program.input: images}), strict=True))
    ours = program.tensors(images, theirs)
    for name in names:
        if name not in ours:
            continue
        apart = np.abs(ours[name].astype(np.int64) - theirs[name].astype(np.int64))
        if apart.any():
            return Divergence(layers[name], int((apart > 0).sum()), apart.size, int(apart.max()))
    return None


def _tensor(proto: TensorProto) -> Tensor:
    array = numpy_helper.to_array(proto)
    packed = proto.data_type in (TensorProto.INT4, TensorProto.INT2)
    return torch.from_numpy(np.array(array.astype(np.int8) if packed else array))
