"""Reshapes, transposes, slices and the like: they move values, so between two equal grids they move integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, fx
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.emulator_kernels import Quantized
from qkd.export.emulator_nodes import Emulation, Node, Operand, in_float, moving, real
from qkd.export.fold import array
from qkd.export.fx_nodes import BATCH, label
from qkd.export.node_arguments import arguments
from qkd.quantizers.operators import operator_called


def reshape(converter: Converter, node: fx.Node) -> Value:
    """flatten, view, reshape, squeeze, unsqueeze: all are determined by the shape that was measured.

    Raises ExportError where the batch axis does not stay as it is.
    """
    old, new, name = converter.shape(node.args[0]), converter.shape(node), label(node)
    value: Value = converter.value(node.args[0])
    if old == new:
        return value
    if new[0] != BATCH:
        raise ExportError(
            f"{name}: a reshape that mixes the images of a batch; keep the first axis as it is", key="export.batch-axis"
        )
    if len(new) == 2:
        return converter.move(value, "Flatten", name, axis=1)
    return converter.move(value, "Reshape", name, _integers(converter, 0, *new[1:]))


def transpose(converter: Converter, node: fx.Node) -> Value:
    """permute and transpose. Raises ExportError where they move the batch axis."""
    axes = permutation(converter, node)
    assert axes is not None
    if axes[0] != 0:
        raise ExportError(
            f"{label(node)}: a transpose that moves the batch axis; keep axis 0 first", key="export.batch-axis"
        )
    return converter.move(converter.value(node.args[0]), "Transpose", label(node), perm=axes)


def permutation(converter: Converter, node: fx.Node) -> list[int] | None:
    """For each axis of a permute's or transpose's result the axis it was before; None for any other node."""
    name = _called(node)
    if name not in ("permute", "transpose"):
        return None
    rank = len(converter.shape(node))
    if name == "permute":
        given = node.kwargs.get("dims", node.args[1:] if len(node.args) != 2 else node.args[1])
        axes = given if isinstance(given, (tuple, list)) else (given,)
        return [int(converter.value(axis)) % rank for axis in axes]
    ends = arguments(converter, node, {"dim0": None, "dim1": None})
    found = list(range(rank))
    first, second = (ends[which] % rank for which in ("dim0", "dim1"))
    found[first], found[second] = found[second], found[first]
    return found


def factors_behind(converter: Converter, node: fx.Node, axis: int) -> tuple[fx.Node | None, np.ndarray]:
    """The product with a constant factor for each entry of ``axis`` that alone reads a node's result, and the factors.

    Permutations may stand between the two. (None, no factors) where there is no such product.
    """
    readers = converter.readers(node)
    if len(readers) != 1:
        return None, np.empty(0)
    axes = permutation(converter, readers[0])
    if axes is not None:
        return factors_behind(converter, readers[0], axes.index(axis))
    if _called(readers[0]) not in ("mul", "mul_in_place"):
        return None, np.empty(0)
    constants = [converter.constants[given] for given in readers[0].all_input_nodes if given in converter.constants]
    if len(constants) != 1:
        return None, np.empty(0)
    shape = converter.shape(node)
    across = [1] * (len(shape) - constants[0].dim()) + list(constants[0].shape)
    fits = len(across) == len(shape) and all(size == 1 for at, size in enumerate(across) if at != axis)
    if not fits or converter.shape(readers[0]) != shape:
        return None, np.empty(0)
    return readers[0], np.broadcast_to(array(constants[0]).reshape(-1), shape[axis : axis + 1]).copy()


def channel_shuffle(converter: Converter, node: fx.Node) -> Value:
    """Reshape, Transpose, Reshape."""
    groups = arguments(converter, node, {"groups": None})["groups"]
    _, channels, height, width = converter.shape(node)
    name, value = label(node), converter.value(node.args[0])
    apart = _integers(converter, 0, groups, channels // groups, height, width)
    value = converter.move(value, "Reshape", f"{name}.apart", apart)
    value = converter.move(value, "Transpose", f"{name}.turned", perm=[0, 2, 1, 3, 4])
    return converter.move(value, "Reshape", name, _integers(converter, 0, channels, height, width))


def split(converter: Converter, node: fx.Node) -> tuple[Value, ...]:
    """chunk and split, as one Slice for each part."""
    axis = int(converter.value(node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)))
    sizes = [tuple(part.shape) for part in converter.results[node]]
    axis %= len(sizes[0])
    ends = np.cumsum([0] + [size[axis] for size in sizes])
    value, name = converter.value(node.args[0]), label(node)
    return tuple(
        _slice(converter, value, f"{name}.{i}", [(axis, int(ends[i]), int(ends[i + 1]), 1)]) for i in range(len(sizes))
    )


def item(converter: Converter, node: fx.Node) -> Value:
    """``parts[i]`` of a tuple, or a slice such as ``x[:, :, ::2, ::2]`` of a tensor. Raises ExportError for other items."""
    source, index = converter.value(node.args[0]), node.args[1]
    if isinstance(source, tuple):
        return source[index]  # type: ignore[index]
    entries = index if isinstance(index, tuple) else (index,)
    shape = converter.shape(node.args[0])
    cuts = []
    for axis, entry in enumerate(entries):
        if not isinstance(entry, slice) or (axis == 0 and entry != slice(None)):
            raise ExportError(
                f"{label(node)}: only slices of channels, height and width are possible, found {entry!r}",
                key="export.not-a-slice",
            )
        start, stop, stride = entry.indices(shape[axis])
        if (start, stop, stride) != (0, shape[axis], 1):
            cuts.append((axis, start, stop, stride))
    return _slice(converter, source, label(node), cuts) if cuts else source


def pad(converter: Converter, node: fx.Node) -> Value:
    """Zeros around a tensor. Raises ExportError for any other padding."""
    given = arguments(converter, node, {"pad": None, "mode": "constant", "value": None})
    if given["mode"] != "constant" or given["value"] not in (None, 0, 0.0):
        raise ExportError(
            f"{label(node)}: padding with {given['mode']} {given['value']} has no integer form; pad with zeros",
            key="export.padding-mode",
        )
    rank = len(converter.shape(node))
    behind = list(reversed([*zip(given["pad"][::2], given["pad"][1::2], strict=True)]))
    return padded(converter, converter.value(node.args[0]), [(0, 0)] * (rank - len(behind)) + behind, label(node))


def padded(converter: Converter, value: Value, around: list[tuple[int, int]], name: str) -> Value:
    """Zeros before and behind each axis; on a grid a zero is the zero point."""
    sizes = _integers(converter, *(before for before, _ in around), *(after for _, after in around))
    if value.grid is None or converter.target.symmetric:
        return converter.move(value, "Pad", name, sizes)
    # onnxruntime has no rule that turns a Pad between quantizers into one of integers, so it is written as such
    zero = converter.graph.constant(value.grid.integer(value.grid.zero_point))
    return converter.dequantize(converter.graph.node("Pad", [value.integers, sizes, zero], name), value.grid)


def unchanged(converter: Converter, node: fx.Node) -> Any:
    """The input itself: a copy, a change of memory layout, dropout in evaluation mode."""
    return converter.value(node.args[0])


def retyped(converter: Converter, node: fx.Node) -> Value:
    """``to`` and ``type_as``: the input itself. Raises ExportError where its type becomes another one."""
    old, new = converter.results[node.args[0]].dtype, converter.results[node].dtype  # type: ignore[index]
    if old != new:
        raise ExportError(f"{label(node)}: from {old} to {new}; a file has one type of floats", key="export.other-type")
    value: Value = converter.value(node.args[0])
    return value


def _slice(converter: Converter, value: Value, name: str, cuts: list[tuple[int, int, int, int]]) -> Value:
    """A Slice with (axis, start, end, stride) for each axis that is cut."""
    axes, starts, ends, strides = zip(*cuts, strict=True)
    parts = [_integers(converter, *numbers) for numbers in (starts, ends, axes, strides)]
    return converter.move(value, "Slice", name, *parts)


def _integers(converter: Converter, *numbers: int) -> str:
    return converter.graph.constant(np.array(numbers, np.int64))


def _called(node: fx.Node) -> str:
    """The name of the operator that a node calls as a function or method; empty for others."""
    found = operator_called(node.target) if node.op in ("call_function", "call_method") else None
    return "" if found is None else found.name


def _emulated_slice(
    integers: Tensor, node: Node, starts: Tensor, ends: Tensor, axes: Tensor, strides: Tensor
) -> Tensor:
    where = [slice(None)] * integers.dim()
    for start, end, axis, stride in zip(*(part.tolist() for part in (starts, ends, axes, strides)), strict=True):
        where[axis] = slice(start, end, stride)
    return integers[tuple(where)]


def _emulated_reshape(integers: Tensor, node: Node, shape: Tensor) -> Tensor:
    first, *others = shape.tolist()
    return integers.reshape(first or len(integers), *others)


def _emulated_pad(node: Node, operands: list[Operand]) -> Operand:
    first, sizes, *zero = operands
    if not isinstance(first, Tensor) or first.is_floating_point():
        return in_float(node, operands)
    before, after = sizes.tolist()[: len(sizes) // 2], sizes.tolist()[len(sizes) // 2 :]
    around = [size for pair in reversed([*zip(before, after, strict=True)]) for size in pair]
    return F.pad(first, around, value=int(zero[0]))


def _emulated_transpose(node: Node, operands: list[Operand]) -> Operand:
    first, axes = operands[0], tuple(node.attributes["perm"])
    if isinstance(first, Quantized):
        return Quantized(first.integers.permute(*axes), first.scale, first.zero)
    return real(first).permute(*axes)


HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(("flatten", "unflatten", "reshape", "squeeze", "unsqueeze"), reshape),
    **dict.fromkeys(("permute", "transpose"), transpose),
    "channel_shuffle": channel_shuffle,
    "split": split,
    "item": item,
    "pad": pad,
    **dict.fromkeys(("contiguous", "copy", "dropout"), unchanged),
    "to": retyped,
}
EMULATIONS: Mapping[str, Emulation] = {
    "Flatten": Emulation(moving(lambda integers, node: integers.flatten(1)), is_layer=False),
    "Reshape": Emulation(moving(_emulated_reshape), is_layer=False),
    "Transpose": Emulation(_emulated_transpose, is_layer=False),
    "Slice": Emulation(moving(_emulated_slice), is_layer=False),
    "Pad": Emulation(_emulated_pad, is_layer=False),
}
