"""The operators of which networks are made: one record for each, with all spellings under which PyTorch has it.

Everything that depends on the operator of a node reads these records: where quantizers are inserted (`node_kinds`), what the
export may move past a quantizer or drop, and which function writes the operator into a file. That function is the entry
of the operator's name in the ``HANDLERS`` of a file ``export/ops_*.py``; an operator without an entry has no ONNX form.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from qkd.quantizers.brevitas_imports import qnn

Kind = Literal[
    "input", "output", "constant", "scalar", "layer", "norm", "relu", "curve", "add", "cat", "pool", "max", "pass", "other"
]  # fmt: skip
"""What a node does to the grid of its input.

layer: a convolution or linear layer that gets quantized weights. norm: batch norm. curve: an activation function other
than ReLU, a layer norm or a product of two tensors: it reads and writes grids, though most are computed in float between
them. pool: an average of elements. max: picks elements. pass: moves or drops elements, so that its output lies on the
grid of its input. scalar: not a tensor. other: anything else, which stays float.
"""


@dataclass(frozen=True)
class Operator:
    """One operator.

    name: of its record and of its handler in the export. kind: what it does to a grid.
    modules, functions, methods: its spellings as classes of layers, functions, and methods of a tensor (by name).
    elsewhere: bare names of classes and functions of libraries that are not imported here.
    unexported: functions that are treated as this kind when quantizers are inserted, but that the export refuses.
    moves: only moves or picks values or adds zeros, so that values may as well be rounded before it.
    passes: in evaluation mode its output is its input.
    in_parts: its result is a tuple of parts of its input.
    between_two: it is of its kind only between two tensors; with a number or a constant it is "other".
    never_negative: its output has no negative values, whatever its input.
    keeps_sign: its output has no negative values where none of its inputs has any, whatever the kind of its node.
    """

    name: str
    kind: Kind = "other"
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Any, ...] = ()
    methods: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    unexported: tuple[Any, ...] = ()
    moves: bool = False
    passes: bool = False
    in_parts: bool = False
    between_two: bool = False
    never_negative: bool = False
    keeps_sign: bool = False

    @property
    def spellings(self) -> tuple[Any, ...]:
        """The classes, functions and methods for which the export takes its handler."""
        return (*self.modules, *self.functions, *self.methods)

    @property
    def names(self) -> frozenset[str]:
        """The bare names of its functions, methods, and what it is called elsewhere."""
        functions = (function.__name__ for function in (*self.functions, *self.unexported))
        return frozenset((*functions, *self.methods, *self.elsewhere))


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPPED_PATHS = ("stochastic_depth", "StochasticDepth", "DropPath")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_POOLS_1D = (nn.AvgPool1d, nn.AdaptiveAvgPool1d)
_MAX_POOLS = (nn.MaxPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_MAX_POOL_FUNCTIONS = (
    *(F.max_pool1d, torch.max_pool1d, F.adaptive_max_pool1d, torch.adaptive_max_pool1d, F.adaptive_max_pool2d),
)
_OTHER_DROPOUTS = (torch.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

_LAYERS = (
    Operator("conv1d", "layer", (nn.Conv1d,)),
    Operator("conv2d", "layer", (nn.Conv2d,)),
    Operator("linear", "layer", (nn.Linear,)),
    Operator("batch_norm", "norm", _BATCH_NORMS),
    Operator("layer_norm", "curve", (nn.LayerNorm,), (F.layer_norm,), unexported=(torch.layer_norm,)),
    Operator("quantizer", "other", (qnn.QuantReLU, qnn.QuantIdentity)),
)
_ACTIVATIONS = (
    Operator("relu", "relu", (nn.ReLU,), (F.relu, torch.relu), ("relu", "relu_"), unexported=(torch.relu_,)),
    Operator("relu6", "relu", (nn.ReLU6,), (F.relu6,)),
    Operator("hardtanh", "other", (nn.Hardtanh,), (F.hardtanh,)),
    Operator("hardswish", "curve", (nn.Hardswish,), (F.hardswish,)),
    Operator("hardsigmoid", "curve", (nn.Hardsigmoid,), (F.hardsigmoid,), never_negative=True),
    Operator("silu", "curve", (nn.SiLU,), (F.silu,)),
    Operator("gelu", "curve", (nn.GELU,), (F.gelu,)),
    Operator("tanh", "curve", (nn.Tanh,), (torch.tanh, F.tanh), ("tanh",)),
    Operator("leaky_relu", "curve", (nn.LeakyReLU,), (F.leaky_relu,)),
    Operator("sigmoid", "curve", (nn.Sigmoid,), (torch.sigmoid, F.sigmoid), ("sigmoid",), never_negative=True),
    Operator("sigmoid_in_place", "other", (), (torch.sigmoid_,), ("sigmoid_",), never_negative=True),
    Operator("softmax", "other", (nn.Softmax,), (F.softmax, torch.softmax), ("softmax",), never_negative=True),
)
_ARITHMETIC = (
    Operator("add", "add", (), (operator.add, operator.iadd, torch.add), ("add", "add_"), between_two=True),
    Operator("mul", "curve", (), (operator.mul, operator.imul, torch.mul), ("mul",), between_two=True, keeps_sign=True),
    Operator("mul_in_place", "curve", (), (), ("mul_",), between_two=True),
    Operator("sub", "other", (), (operator.sub, torch.sub), ("sub",)),
    Operator("div", "other", (), (operator.truediv, torch.div), ("div",)),
    Operator("abs", "other", (), (torch.abs,), ("abs",), never_negative=True),
    Operator("square", "other", (), (torch.square,), ("square",), never_negative=True),
    Operator("cat", "cat", (), (torch.cat, torch.concat), unexported=(torch.concatenate, operator.concat)),
)
_POOLS = (
    Operator("avg_pool1d", "pool", _POOLS_1D, (F.avg_pool1d, F.adaptive_avg_pool1d)),
    Operator("avg_pool2d", "pool", (nn.AvgPool2d,), (F.avg_pool2d,)),
    Operator("adaptive_avg_pool2d", "pool", (nn.AdaptiveAvgPool2d,), (F.adaptive_avg_pool2d,)),
    Operator("mean", "pool", (), (torch.mean,), ("mean",)),
    Operator("max_pool2d", "max", (nn.MaxPool2d,), (F.max_pool2d,), unexported=(torch.max_pool2d,), moves=True),
    Operator("other_max_pool", "max", _MAX_POOLS, _MAX_POOL_FUNCTIONS),
)
_SHAPES = (
    Operator("flatten", "pass", (nn.Flatten,), (torch.flatten,), ("flatten",), moves=True),
    Operator("unflatten", "pass", (nn.Unflatten,), (), ("unflatten",), moves=True),
    Operator("reshape", "pass", (), (torch.reshape,), ("reshape", "view"), moves=True),
    Operator("squeeze", "pass", (), (torch.squeeze,), ("squeeze",), moves=True),
    Operator("unsqueeze", "pass", (), (torch.unsqueeze,), ("unsqueeze",), moves=True),
    Operator("permute", "pass", (), (torch.permute,), ("permute",), moves=True),
    Operator("transpose", "pass", (), (torch.transpose,), ("transpose",), moves=True),
    Operator("channel_shuffle", "pass", (nn.ChannelShuffle,), (F.channel_shuffle,), moves=True),
    Operator("pixel_shuffle", "pass", (nn.PixelShuffle,), (F.pixel_shuffle,)),
    Operator("split", "pass", (), (torch.chunk, torch.split), ("chunk", "split"), in_parts=True),
    Operator("item", "other", (), (operator.getitem,)),  # node_kinds looks at what it takes an item of
    Operator("pad", "other", (), (F.pad,), moves=True),
    Operator("contiguous", "pass", (), (), ("contiguous",), moves=True),
    Operator("copy", "other", (), (), ("clone", "detach", "float")),
    Operator("size", "scalar", (), (torch.numel,), ("size", "dim", "numel")),
    Operator("identity", "pass", (nn.Identity,), passes=True),
    Operator(
        "dropout",
        "pass",
        _DROPOUTS,
        (F.dropout,),
        elsewhere=_DROPPED_PATHS,
        unexported=_OTHER_DROPOUTS,
        passes=True,
    ),
)

OPERATORS: dict[str, Operator] = {
    each.name: each for group in (_LAYERS, _ACTIVATIONS, _ARITHMETIC, _POOLS, _SHAPES) for each in group
}


def operator_called(target: Any) -> Operator | None:
    """The operator of a function, or of the method of a tensor given by its name."""
    found = (each for each in OPERATORS.values() if target in (*each.functions, *each.unexported, *each.methods))
    return next(found, None)


def operator_of_class(kind: type) -> Operator | None:
    """The operator of exactly this class of layers, or of the one that it ``computes`` (`qkd.networks.batch_norm`)."""
    kind = getattr(kind, "computes", kind)
    found = (each for each in OPERATORS.values() if kind in each.modules or kind.__name__ in each.elsewhere)
    return next(found, None)


def operators_of_class(kind: type) -> Iterator[Operator]:
    """The operators of a class of layers and of the classes it is derived from, nearest first."""
    return (found for each in kind.__mro__ if (found := operator_of_class(each)) is not None)


def operator_named(name: str) -> Operator | None:
    """The operator that has a function or method of this bare name."""
    return next((each for each in OPERATORS.values() if name in each.names), None)


def modules_where(holds: Callable[[Operator], bool]) -> tuple[type[nn.Module], ...]:
    """The classes of layers of all operators for which something holds."""
    return tuple(kind for each in OPERATORS.values() if holds(each) for kind in each.modules)
