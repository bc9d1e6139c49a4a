"""The operators of which networks are made: one record for each, with all spellings under which PyTorch has it.

Everything that depends on the operator of a node reads these records: where quantizers are inserted (`node_kinds`), what the
export may move past a quantizer or drop, which signs its result may have, and which function writes the operator into a
file. That function is the entry of the operator's name in the ``HANDLERS`` of a file ``export/ops_*.py``; an operator
without an entry has no ONNX form.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from qkd.quantizers import signs
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.signs import Rule

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
    sign: how the signs of its result follow from its arguments; without a rule a move, pool or maximum has those of its
        input, a concatenation those of its tensors, and everything else may have both.
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
    sign: Rule | None = None

    @property
    def sign_rule(self) -> Rule:
        """How the signs of its result follow from its arguments."""
        if self.sign is not None:
            return self.sign
        if self.kind in ("pass", "pool", "max"):
            return signs.inherited
        return signs.joined if self.kind == "cat" else signs.unknown

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

_UNBOUND = (torch.unbind, torch.tensor_split, torch.unsafe_chunk)
_REARRANGEMENTS = (torch.roll, torch.movedim, torch.narrow, torch.select, torch.t, torch.tile)
_PADDINGS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
)

_LAYERS = (
    Operator("conv1d", "layer", (nn.Conv1d,)),
    Operator("conv2d", "layer", (nn.Conv2d,)),
    Operator("linear", "layer", (nn.Linear,)),
    Operator("batch_norm", "norm", _BATCH_NORMS),
    Operator("layer_norm", "curve", (nn.LayerNorm,), (F.layer_norm,), unexported=(torch.layer_norm,)),
    Operator("quantizer", "other", (qnn.QuantReLU, qnn.QuantIdentity)),
)
_ACTIVATIONS = (
    Operator(
        "relu",
        "relu",
        (nn.ReLU,),
        (F.relu, torch.relu),
        ("relu", "relu_"),
        unexported=(torch.relu_,),
        sign=signs.non_negative,
    ),
    Operator("relu6", "relu", (nn.ReLU6,), (F.relu6,), sign=signs.non_negative),
    Operator("hardtanh", "other", (nn.Hardtanh,), (F.hardtanh,), sign=signs.clamped_hard),
    Operator("hardswish", "curve", (nn.Hardswish,), (F.hardswish,), sign=signs.inherited),
    Operator("hardsigmoid", "curve", (nn.Hardsigmoid,), (F.hardsigmoid,), sign=signs.non_negative),
    Operator("silu", "curve", (nn.SiLU,), (F.silu,), sign=signs.inherited),
    Operator("gelu", "curve", (nn.GELU,), (F.gelu,), sign=signs.inherited),
    Operator("tanh", "curve", (nn.Tanh,), (torch.tanh, F.tanh), ("tanh",), sign=signs.inherited),
    Operator("leaky_relu", "curve", (nn.LeakyReLU,), (F.leaky_relu,), sign=signs.leaky),
    Operator("sigmoid", "curve", (nn.Sigmoid,), (torch.sigmoid, F.sigmoid), ("sigmoid",), sign=signs.non_negative),
    Operator("sigmoid_in_place", "other", (), (torch.sigmoid_,), ("sigmoid_",), sign=signs.non_negative),
    Operator("softmax", "other", (nn.Softmax,), (F.softmax, torch.softmax), ("softmax",), sign=signs.non_negative),
    Operator("elu", "other", (nn.ELU, nn.SELU, nn.CELU), (F.elu, F.selu, F.celu), sign=signs.bent),
    Operator("mish", "other", (nn.Mish,), (F.mish,), sign=signs.inherited),
    Operator("prelu", "other", (nn.PReLU,), (torch.prelu,), sign=signs.bent),
    Operator("softplus", "other", (nn.Softplus,), (F.softplus,), sign=signs.non_negative),
    Operator("log_softmax", "other", (nn.LogSoftmax,), (F.log_softmax, torch.log_softmax), sign=signs.non_positive),
    Operator("log_sigmoid", "other", (nn.LogSigmoid,), (F.logsigmoid,), sign=signs.non_positive),
)
_MAXIMA, _MINIMA = ("maximum", "clamp_min", "clamp_min_"), ("minimum", "clamp_max", "clamp_max_")
_ROUNDINGS = (torch.round, torch.floor, torch.ceil, torch.trunc, torch.sign)
_MATRIX_PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, torch.mm)
_ADDS = (operator.add, operator.iadd, torch.add)
_MULS = (operator.mul, operator.imul, torch.mul, torch.multiply)
_DIVS = (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide)
_ARITHMETIC = (
    Operator("add", "add", (), _ADDS, ("add", "add_"), between_two=True, sign=signs.added),
    Operator("mul", "curve", (), _MULS, ("mul", "multiply"), between_two=True, sign=signs.product),
    Operator("mul_in_place", "curve", (), (), ("mul_",), between_two=True, sign=signs.product),
    Operator("sub", "other", (), (operator.sub, torch.sub, torch.subtract), ("sub", "subtract"), sign=signs.subtracted),
    Operator("sub_in_place", "other", (), (operator.isub,), ("sub_",), sign=signs.subtracted),
    Operator("rsub", "other", (), (torch.rsub,), sign=signs.subtracted_from),
    Operator("div", "other", (), _DIVS, ("div", "divide"), sign=signs.product),
    Operator("div_in_place", "other", (), (), ("div_",), sign=signs.product),
    Operator("floor_div", "other", (), (operator.floordiv, torch.floor_divide), ("floor_divide",), sign=signs.product),
    Operator("neg", "other", (), (operator.neg, torch.neg), ("neg", "neg_", "negative"), sign=signs.negated),
    Operator("pow", "other", (), (operator.pow, torch.pow), ("pow", "pow_"), sign=signs.power),
    Operator("abs", "other", (), (torch.abs, operator.abs), ("abs", "abs_", "absolute"), sign=signs.non_negative),
    Operator("square", "other", (), (torch.square,), ("square", "square_"), sign=signs.non_negative),
    Operator("sqrt", "other", (), (torch.sqrt, torch.rsqrt), ("sqrt", "rsqrt", "sqrt_"), sign=signs.non_negative),
    Operator("exp", "other", (), (torch.exp, torch.exp2), ("exp", "exp_", "exp2"), sign=signs.non_negative),
    Operator("spread", "other", (), (torch.var, torch.std), ("var", "std", "norm"), sign=signs.non_negative),
    Operator("clamp", "other", (), (torch.clamp, torch.clip), ("clamp", "clamp_", "clip"), sign=signs.clamped),
    Operator("maximum", "other", (), (torch.maximum, torch.clamp_min), _MAXIMA, sign=signs.larger_of_two),
    Operator("minimum", "other", (), (torch.minimum, torch.clamp_max), _MINIMA, sign=signs.smaller_of_two),
    Operator("largest", "other", (), (torch.max,), ("max",), sign=signs.largest),
    Operator("smallest", "other", (), (torch.min,), ("min",), sign=signs.smallest),
    Operator("sum", "other", (), (torch.sum, torch.amax, torch.amin), ("sum", "amax", "amin"), sign=signs.inherited),
    Operator("round", "other", (), _ROUNDINGS, ("round", "floor", "ceil", "trunc", "sign"), sign=signs.inherited),
    Operator("normalize", "other", (), (F.normalize,), sign=signs.inherited),
    Operator("matmul", "other", (), _MATRIX_PRODUCTS, ("matmul", "bmm", "mm"), sign=signs.matrix_product),
    Operator("where", "other", (), (torch.where,), sign=signs.chosen),
    Operator("masked_fill", "other", (), (torch.masked_fill,), ("masked_fill",), sign=signs.filled),
    Operator("stack", "other", (), (torch.stack,), sign=signs.joined),
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
    Operator("unbind", "pass", (), _UNBOUND, ("unbind", "tensor_split", "unsafe_chunk"), in_parts=True),
    Operator("item", "other", (), (operator.getitem,), sign=signs.inherited),  # node_kinds looks at what it takes out
    Operator("pad", "other", (), (F.pad,), moves=True, sign=signs.padded),  # node_kinds looks at what it adds
    Operator("pad_layer", "other", _PADDINGS, sign=signs.padded),  # likewise
    Operator("contiguous", "pass", (), (), ("contiguous",), moves=True),
    Operator("copy", "pass", (), (torch.clone, torch.detach), ("clone", "detach", "float"), moves=True),
    Operator(
        "to", "other", (), (), ("to", "type_as"), moves=True, sign=signs.inherited
    ),  # node_kinds looks at the type
    Operator(
        "expand", "pass", (), (torch.broadcast_to,), ("expand", "expand_as", "broadcast_to", "repeat"), moves=True
    ),
    Operator("flip", "pass", (), (torch.flip,), ("flip",), moves=True),
    Operator("rearrange", "pass", (), _REARRANGEMENTS, ("roll", "movedim", "narrow", "select", "t"), moves=True),
    Operator("interpolate", "other", (nn.Upsample,), (F.interpolate,), sign=signs.resized),
    Operator("size", "scalar", (), (torch.numel,), ("size", "dim", "numel"), sign=signs.non_negative),
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
