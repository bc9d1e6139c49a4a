"""What must hold in every model that is exported; a violation stops the export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qkd.errors import ExportError
from qkd.export.targets import ONNXRUNTIME, Target

BIAS_END = 2**30
ACCUMULATOR_END = 2**31


def require_invariants(model: onnx.ModelProto, target: Target = ONNXRUNTIME) -> None:
    """Raises ExportError naming every invariant that a model for the target breaks."""
    broken = list(_broken(model.graph, target))
    if broken:
        raise ExportError(
            "; ".join(broken[:8]) + ": the file would not run exactly in integers, nothing was written",
            key="export.broken-invariant",
        )


def _broken(graph: onnx.GraphProto, target: Target) -> Iterator[str]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    if len(graph.input) != 1 or graph.input[0].name in constants:
        yield f"the graph has the inputs {[i.name for i in graph.input]}, not one alone"
    names = Counter(output for node in graph.node for output in node.output)
    yield from (f"{name}: two nodes of this name" for name, count in names.items() if count > 1)
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            yield from _activation(node, constants, target)
        if node.op_type == "Clip" and node.input[0] in constants:
            yield f"{node.name}: a Clip on a constant"
        if node.op_type == "Concat" and target.joins_one_scale:
            yield from _joined(node, makers, target)
        if node.op_type in ("Conv", "Gemm"):
            yield from _weighted(node, constants, makers)


def _activation(node: onnx.NodeProto, constants: dict[str, TensorProto], target: Target) -> Iterator[str]:
    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    kind = np.int8 if target.signed else np.uint8
    if zero.dtype != kind or zero.ndim or scale.ndim:
        yield f"{node.input[0]}: activations are not {kind.__name__} with one scale"
    if target.symmetric and zero.any():
        yield f"{node.input[0]}: the zero point is {zero}, and {target.name} takes 0 only"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.input[0]}: the scale is {scale}"


def _joined(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], target: Target) -> Iterator[str]:
    """Some targets join tensors of one scale and zero point only."""
    grids = {tuple(makers[name].input[1:]) for name in node.input if name in makers}
    if len(grids) > 1:
        yield f"{node.name}: {target.name} joins tensors of one scale, and these have {len(grids)}"


def _weighted(
    node: onnx.NodeProto, constants: dict[str, TensorProto], makers: dict[str, onnx.NodeProto]
) -> Iterator[str]:
    sources = [makers.get(name) for name in node.input]
    if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
        return  # a float layer, which Emitted names with the reason
    (scale, *_), (integers, weight_scale), (bias, bias_scale) = (
        _constants(source, constants, makers) for source in sources if source is not None
    )
    expected = (np.float32(scale) * weight_scale).astype(np.float32)
    if not np.array_equal(expected, bias_scale):
        yield f"{node.name}: the bias scale is not input scale * weight scale"
    if integers.dtype != np.int8 or bias.dtype != np.int32:
        yield f"{node.name}: weights are {integers.dtype}, the bias {bias.dtype}; they must be int8 and int32"
    if not (np.isfinite(weight_scale).all() and (weight_scale > 0).all() and (bias_scale > 0).all()):
        yield f"{node.name}: a weight scale is zero or not finite"
    largest = np.abs(bias.astype(np.int64))
    if largest.max(initial=0) >= BIAS_END:
        yield f"{node.name}: the bias reaches {largest.max()}, beyond 2^30"
    products = 255 * np.abs(integers.astype(np.int64)).reshape(len(integers), -1).sum(axis=1)
    if (products + largest).max(initial=0) >= ACCUMULATOR_END:
        yield f"{node.name}: the sum of products may not fit in an int32"


def _constants(
    dequantize: onnx.NodeProto, constants: dict[str, TensorProto], makers: dict[str, onnx.NodeProto]
) -> tuple[np.ndarray, ...]:
    """(scale,) of an activation, (integers, scales) of a constant."""
    integers, scale = (constant_value(name, constants, makers) for name in dequantize.input[:2])
    return tuple(part for part in (integers, scale) if part is not None)


def constant_value(
    name: str, constants: dict[str, TensorProto], makers: dict[str, onnx.NodeProto]
) -> np.ndarray | None:
    """The values behind a name: packed integers cast, multiplied and shifted, scales multiplied; None if it is no constant."""
    if name in constants:
        return numpy_helper.to_array(constants[name])
    maker = makers.get(name)
    if maker is None or maker.op_type not in ("Cast", "Mul", "Add"):
        return None
    inputs = [constant_value(each, constants, makers) for each in maker.input]
    if any(each is None for each in inputs):
        return None
    first, *rest = (np.asarray(each) for each in inputs)
    if not rest:
        return first.astype(np.int8)
    return first + rest[0] if maker.op_type == "Add" else first * rest[0]
