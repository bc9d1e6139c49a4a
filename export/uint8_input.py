"""Files that take uint8 images and normalise them as the training data was normalised, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from qkd.errors import ExportError, UsageError, nearest
from qkd.export.onnx_graph import INPUT, Graph
from qkd.export.session import open_session
from qkd.export.targets import Layout

FLOATS, SCALED, SHIFTED, PLANES = (f"{INPUT}.{what}" for what in ("float", "scaled", "shifted", "planes"))
FRONT = (FLOATS, SCALED, SHIFTED, PLANES)
"""Names of the nodes that normalise; they are float on purpose, and exact: each rounds once, as in training."""
BYTES = 256


@dataclass(frozen=True)
class Uint8Input:
    """How a file normalises uint8 images: ``image * scale + shift`` in float32, as the training data was normalised.

    scale, shift: float32 (channels,). layout: where the channels are, "nchw" before the rows, "nhwc" after the columns.
    """

    scale: np.ndarray
    shift: np.ndarray
    layout: Layout = "nchw"

    def arranged(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (N, C, H, W) in the layout of the file."""
        return in_layout(images, self.layout)

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (N, C, H, W) as the float32 images that a file with float input takes."""
        scale, shift = (part.astype(np.float32).reshape(-1, 1, 1) for part in (self.scale, self.shift))
        return images.astype(np.float32) * scale + shift


def in_layout(images: np.ndarray, layout: str) -> np.ndarray:
    """Images (N, C, H, W), contiguous in a layout: unchanged for "nchw", (N, H, W, C) for "nhwc"."""
    return np.ascontiguousarray(images if layout == "nchw" else images.transpose(0, 2, 3, 1))


def require_layout(layout: str) -> None:
    """Raises UsageError for a layout that does not exist."""
    possible = get_args(Layout)
    if layout not in possible:
        raise UsageError(
            f"layout {layout!r}: choose one of {', '.join(possible)}{nearest(layout, possible)}",
            key="export.unknown-layout",
        )


def normalise_bytes(graph: Graph, shape: tuple[int, ...], uint8_input: Uint8Input) -> str:
    """Makes uint8 images the graph's input and returns the name of the normalised float images (N, C, H, W).

    ``shape`` is (C, H, W). The same three float32 operations as in training, so the integers behind them are those of a
    file with float input for each of the 256 bytes. Source: ``Data.normalize``. Folding them into an integer convolution
    would round twice. Raises ExportError for scales and shifts that are not one for each channel.
    """
    require_layout(uint8_input.layout)
    channels, height, width = shape
    scales, shifts = np.size(uint8_input.scale), np.size(uint8_input.shift)
    if scales != channels or shifts != channels:
        raise ExportError(
            f"{scales} scales and {shifts} shifts for images of {channels} channels; give one each",
            key="export.normalisation-channels",
        )
    last = uint8_input.layout == "nhwc"
    graph.takes(TensorProto.UINT8, (height, width, channels) if last else shape)
    # behind the columns a row of all columns and channels is multiplied at once: 3 numbers at a time are 4 times slower
    scale, shift = (
        np.tile(part, (width, 1)) if last else part.reshape(-1, 1, 1)
        for part in (np.asarray(part, np.float32) for part in (uint8_input.scale, uint8_input.shift))
    )
    floats = graph.node("Cast", [INPUT], FLOATS, to=TensorProto.FLOAT)
    scaled = graph.node("Mul", [floats, graph.constant(scale, f"{SCALED}.by")], SCALED)
    shifted = graph.node("Add", [scaled, graph.constant(shift, f"{SHIFTED}.by")], SHIFTED)
    return graph.node("Transpose", [shifted], PLANES, perm=[0, 3, 1, 2]) if last else shifted


def require_exact_floats(model: onnx.ModelProto, uint8_input: Uint8Input, shape: tuple[int, ...]) -> None:
    """Normalises all 256 bytes of every channel; raises ExportError where a float differs from that of training."""
    channels, height, width = shape
    count = -(-BYTES // (height * width))
    every = np.resize(np.arange(BYTES, dtype=np.uint8), (count, 1, height, width)).repeat(channels, axis=1)
    found = open_session(_alone(model), threads=1).run(None, {INPUT: uint8_input.arranged(every)})[0]
    wrong = found != uint8_input.normalized(every)
    if wrong.any():
        values = sorted({int(value) for value in every[wrong]})
        raise ExportError(
            f"{INPUT}: onnxruntime normalises the bytes {values[:8]} otherwise than training; use --input float",
            key="export.inexact-normalisation",
        )


def _alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes that normalise as a model of their own."""
    nodes = [node for node in model.graph.node if node.name in FRONT]
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "front", list(model.graph.input), [output], constants)
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
