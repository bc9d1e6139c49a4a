"""The integer emulator: what onnxruntime computes for an emitted file, in a second program that shares none of its code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from qkd.export.graph import load, require_ours
from qkd.export.operations import Operand, operation_of, read_node, real
from qkd.export.session import Source, open_session, require_images

MEMORY = 2**18
"""Pixels in a batch, unless a batch size is asked for."""


def emulate(source: Source, images: np.ndarray, *, batch: int | None = None) -> np.ndarray:
    """Logits (N, classes) for float32 images (N, C, H, W), equal to onnxruntime's bit for bit.

    Integer layers are computed here; an operator that stayed float has no integer meaning and is handed to onnxruntime
    alone. Raises ExportError for a file with operators that an emitted file does not have.
    """
    program = Program(source)
    images = require_images(images)
    batch = batch or max(1, min(64, MEMORY // (images.shape[2] * images.shape[3])))
    parts = [program.run(images[i : i + batch])[program.output] for i in range(0, len(images), batch)]
    return np.concatenate(parts)


@final
class Program:
    """A model ready to be emulated: its nodes in order, its constants evaluated once."""

    def __init__(self, source: Source) -> None:
        model = load(source)
        require_ours(model, "the model" if isinstance(source, onnx.ModelProto) else str(source))
        graph = model.graph
        opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.constants: dict[str, Operand] = {t.name: _tensor(t) for t in graph.initializer}
        self.nodes = []
        for node in (read_node(proto, opset) for proto in graph.node):
            if all(name in self.constants for name in node.inputs):
                self.constants[node.output] = operation_of(node)(node, [self.constants[name] for name in node.inputs])
            else:
                self.nodes.append(node)
        self._last_reader = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}

    @torch.no_grad()
    def run(self, images: np.ndarray, keep: Collection[str] = ()) -> dict[str, np.ndarray]:
        """The output, and the tensors named in ``keep``, for one batch of images."""
        values = {self.input: torch.from_numpy(np.ascontiguousarray(images, np.float32))}
        wanted, kept = {self.output, *keep}, {}
        for index, node in enumerate(self.nodes):
            operands = [values[name] if name in values else self.constants[name] for name in node.inputs]
            values[node.output] = operation_of(node)(node, operands)
            if node.output in wanted:
                kept[node.output] = real(values[node.output]).numpy()
            for name in node.inputs:
                if self._last_reader[name] == index:
                    values.pop(name, None)
        return kept


@dataclass(frozen=True)
class Divergence:
    """The first layer whose integers differ: its name, how many values differ of how many, and by how many steps at most."""

    layer: str
    different: int
    values: int
    steps: int

    def __str__(self) -> str:
        return f"{self.layer}: {self.different} of {self.values} values differ, by up to {self.steps} steps"


def first_divergence(source: Source, images: np.ndarray) -> Divergence | None:
    """Where emulator and onnxruntime part ways first, for one batch of images; None if every integer is equal."""
    model = onnx.ModelProto()
    model.CopyFrom(load(source))
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    session = open_session(model)
    images = np.ascontiguousarray(images, np.float32)
    theirs = session.run(names, {session.get_inputs()[0].name: images})
    ours = Program(source).run(images, names)
    for name, found in zip(names, theirs, strict=True):
        steps = np.abs(ours[name].astype(np.int64) - found.astype(np.int64))
        if steps.any():
            return Divergence(name.removesuffix(".quantize"), int((steps > 0).sum()), steps.size, int(steps.max()))
    return None


def _tensor(proto: TensorProto) -> Tensor:
    array = numpy_helper.to_array(proto)
    packed = proto.data_type in (TensorProto.INT4, TensorProto.INT2)
    return torch.from_numpy(np.array(array.astype(np.int8) if packed else array))
