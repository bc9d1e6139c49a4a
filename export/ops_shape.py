"""Reshapes, transposes, slices and the like: they move values, so between two equal grids they move integers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export.converter import Converter, Handler, Value
from qkd.export.fold import array
from qkd.export.fx_nodes import BATCH, label
from qkd.export.node_arguments import arguments

PERMUTES, TRANSPOSES = (torch.permute, "permute"), (torch.transpose, "transpose")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


def reshape(walk: Converter, node: fx.Node) -> Value:
    """flatten, view, reshape, squeeze, unsqueeze: the shape that was measured says it all."""
    old, new, name = walk.shape(node.args[0]), walk.shape(node), label(node)
    value: Value = walk.value(node.args[0])
    if old == new:
        return value
    if new[0] != BATCH:
        raise ExportError(f"{name}: a reshape that mixes the images of a batch; keep the first axis as it is")
    if len(new) == 2:
        return walk.move(value, "Flatten", name, axis=1)
    return walk.move(value, "Reshape", name, _integers(walk, 0, *new[1:]))


def transpose(walk: Converter, node: fx.Node) -> Value:
    """permute and transpose."""
    axes = turned(walk, node)
    assert axes is not None
    if axes[0] != 0:
        raise ExportError(f"{label(node)}: a transpose that moves the batch axis; keep axis 0 first")
    return walk.move(walk.value(node.args[0]), "Transpose", label(node), perm=axes)


def turned(walk: Converter, node: fx.Node) -> list[int] | None:
    """For each axis of a permute's or transpose's result the axis it was before; None for any other node."""
    if node.op not in ("call_function", "call_method") or node.target not in (*PERMUTES, *TRANSPOSES):
        return None
    rank = len(walk.shape(node))
    if node.target in PERMUTES:
        given = node.kwargs.get("dims", node.args[1:] if len(node.args) != 2 else node.args[1])
        axes = given if isinstance(given, (tuple, list)) else (given,)
        return [int(walk.value(axis)) % rank for axis in axes]
    ends = arguments(walk, node, {"dim0": None, "dim1": None})
    found = list(range(rank))
    first, second = (ends[which] % rank for which in ("dim0", "dim1"))
    found[first], found[second] = found[second], found[first]
    return found


def factors_behind(walk: Converter, node: fx.Node, axis: int) -> tuple[fx.Node | None, np.ndarray]:
    """The product with a constant factor for each entry of ``axis`` that alone reads a node's result, and the factors.

    Seen through permutations. (None, no factors) where there is none.
    """
    readers = walk.readers(node)
    if len(readers) != 1:
        return None, np.empty(0)
    axes = turned(walk, readers[0])
    if axes is not None:
        return factors_behind(walk, readers[0], axes.index(axis))
    if readers[0].op == "call_module" or readers[0].target not in PRODUCTS:
        return None, np.empty(0)
    constants = [walk.constants[given] for given in readers[0].all_input_nodes if given in walk.constants]
    if len(constants) != 1:
        return None, np.empty(0)
    shape = walk.shape(node)
    across = [1] * (len(shape) - constants[0].dim()) + list(constants[0].shape)
    fits = len(across) == len(shape) and all(size == 1 for at, size in enumerate(across) if at != axis)
    if not fits or walk.shape(readers[0]) != shape:
        return None, np.empty(0)
    return readers[0], np.broadcast_to(array(constants[0]).reshape(-1), shape[axis : axis + 1]).copy()


def channel_shuffle(walk: Converter, node: fx.Node) -> Value:
    groups = arguments(walk, node, {"groups": None})["groups"]
    _, channels, height, width = walk.shape(node)
    name, value = label(node), walk.value(node.args[0])
    apart = _integers(walk, 0, groups, channels // groups, height, width)
    value = walk.move(value, "Reshape", f"{name}.apart", apart)
    value = walk.move(value, "Transpose", f"{name}.turned", perm=[0, 2, 1, 3, 4])
    return walk.move(value, "Reshape", name, _integers(walk, 0, channels, height, width))


def chunk(walk: Converter, node: fx.Node) -> tuple[Value, ...]:
    """chunk and split, as one Slice for each part."""
    axis = int(walk.value(node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)))
    sizes = [tuple(part.shape) for part in walk.results[node]]
    axis %= len(sizes[0])
    ends = np.cumsum([0] + [size[axis] for size in sizes])
    value, name = walk.value(node.args[0]), label(node)
    return tuple(
        _slice(walk, value, f"{name}.{i}", [(axis, int(ends[i]), int(ends[i + 1]), 1)]) for i in range(len(sizes))
    )


def item(walk: Converter, node: fx.Node) -> Value:
    """``parts[i]`` of a tuple, or a slice such as ``x[:, :, ::2, ::2]`` of a tensor."""
    source, index = walk.value(node.args[0]), node.args[1]
    if isinstance(source, tuple):
        return source[index]  # type: ignore[index]
    entries = index if isinstance(index, tuple) else (index,)
    shape = walk.shape(node.args[0])
    steps = []
    for axis, entry in enumerate(entries):
        if not isinstance(entry, slice) or (axis == 0 and entry != slice(None)):
            raise ExportError(f"{label(node)}: only slices of channels, height and width are possible, found {entry!r}")
        start, stop, step = entry.indices(shape[axis])
        if (start, stop, step) != (0, shape[axis], 1):
            steps.append((axis, start, stop, step))
    return _slice(walk, source, label(node), steps) if steps else source


def pad(walk: Converter, node: fx.Node) -> Value:
    given = arguments(walk, node, {"pad": None, "mode": "constant", "value": None})
    if given["mode"] != "constant" or given["value"] not in (None, 0, 0.0):
        raise ExportError(
            f"{label(node)}: padding with {given['mode']} {given['value']} has no integer form; pad with zeros"
        )
    rank = len(walk.shape(node))
    behind = list(reversed([*zip(given["pad"][::2], given["pad"][1::2], strict=True)]))
    return padded(walk, walk.value(node.args[0]), [(0, 0)] * (rank - len(behind)) + behind, label(node))


def padded(walk: Converter, value: Value, around: list[tuple[int, int]], name: str) -> Value:
    """Zeros before and behind each axis; on a grid a zero is the zero point."""
    sizes = _integers(walk, *(before for before, _ in around), *(after for _, after in around))
    if value.grid is None or walk.target.symmetric:
        return walk.move(value, "Pad", name, sizes)
    # onnxruntime has no rule that turns a Pad between quantizers into one of integers, so it is written as such
    zero = walk.graph.constant(value.grid.code(value.grid.zero_point))
    return walk.dequantize(walk.graph.node("Pad", [value.codes, sizes, zero], name), value.grid)


def unchanged(walk: Converter, node: fx.Node) -> Any:
    return walk.value(node.args[0])


def _slice(walk: Converter, value: Value, name: str, steps: list[tuple[int, int, int, int]]) -> Value:
    axes, starts, ends, strides = zip(*steps, strict=True)
    parts = (_integers(walk, *starts), _integers(walk, *ends), _integers(walk, *axes), _integers(walk, *strides))
    return walk.move(value, "Slice", name, *parts)


def _integers(walk: Converter, *numbers: int) -> str:
    return walk.graph.constant(np.array(numbers, np.int64))


VIEWS: dict[Any, Handler] = {
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten", "view", torch.reshape, "reshape"), reshape),
    **dict.fromkeys((torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", nn.Unflatten, "unflatten"), reshape),
    **dict.fromkeys((*PERMUTES, *TRANSPOSES), transpose),
    **dict.fromkeys((nn.ChannelShuffle, F.channel_shuffle), channel_shuffle),
    **dict.fromkeys((torch.chunk, "chunk", torch.split, "split"), chunk),
    operator.getitem: item,
    F.pad: pad,
    **dict.fromkeys(("contiguous", "clone", "detach", "float", F.dropout), unchanged),
}
