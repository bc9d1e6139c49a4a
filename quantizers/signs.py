"""Which signs the values of a tensor may have, and how each operator's follow from those of its operands.

A sign is never guessed: it is proven from the operands for every input, or both are possible, which costs a bit of the grid
and loses nothing. A wrong "never negative" would let the quantizer make every negative value zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag
from typing import Any

import torch
from torch import Tensor, fx, nn


class Sign(Flag):
    """The signs that may occur among a tensor's values beside zero; with none of them all values are zero."""

    ZERO = 0
    NEGATIVE = 1
    POSITIVE = 2
    BOTH = 3


@dataclass(frozen=True)
class Call:
    """One call of an operator: its node, the layer that it calls (None for functions and methods), and what is known of signs."""

    node: fx.Node
    layer: nn.Module | None
    known: dict[fx.Node, Sign]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position and name; of a layer, whose operand alone is passed, the attribute of this name."""
        if self.layer is not None and position:
            return getattr(self.layer, name, default)
        return self.node.args[position] if position < len(self.node.args) else self.node.kwargs.get(name, default)

    def sign(self, position: int, name: str = "input", default: Any = None) -> Sign:
        """The sign of an argument."""
        return self.of(self.argument(position, name, default))

    def of(self, value: Any) -> Sign:
        """The sign of a node's result, a number, a tensor, or the members of a list; of anything else BOTH."""
        if isinstance(value, fx.Node):
            return self.known.get(value, Sign.BOTH)
        if isinstance(value, (list, tuple)):
            return union(*map(self.of, value))
        if isinstance(value, (int, float, Tensor)):
            return sign_of_values(torch.as_tensor(value))
        return Sign.BOTH


Rule = Callable[[Call], Sign]
"""How the sign of an operator's result follows from its arguments."""


def sign_of_values(values: Tensor) -> Sign:
    """The sign of values that are written in the code, so that no training and no checkpoint changes them."""
    if values.is_complex() or bool(values.isnan().any()):
        return Sign.BOTH
    return _sign(bool((values < 0).any()), bool((values > 0).any()))


def _sign(negative: bool, positive: bool) -> Sign:
    return (Sign.NEGATIVE if negative else Sign.ZERO) | (Sign.POSITIVE if positive else Sign.ZERO)


def union(*signs: Sign) -> Sign:
    """Of a sum, or of values taken from several tensors."""
    found = Sign.ZERO
    for each in signs:
        found |= each
    return found


def opposite(sign: Sign) -> Sign:
    return times(sign, Sign.NEGATIVE)


def times(a: Sign, b: Sign) -> Sign:
    """Of a product, a quotient, and a sum of products."""
    n, p = Sign.NEGATIVE, Sign.POSITIVE
    negative = (n in a and p in b) or (p in a and n in b)
    return _sign(negative, (n in a and n in b) or (p in a and p in b))


def larger(a: Sign, b: Sign) -> Sign:
    """Of a maximum of two values."""
    return (a & b & Sign.NEGATIVE) | ((a | b) & Sign.POSITIVE)


def smaller(a: Sign, b: Sign) -> Sign:
    """Of a minimum of two values."""
    return opposite(larger(opposite(a), opposite(b)))


def unknown(call: Call) -> Sign:
    """Both signs are possible."""
    return Sign.BOTH


def non_negative(call: Call) -> Sign:
    """No negative values, whatever the input."""
    return Sign.POSITIVE


def non_positive(call: Call) -> Sign:
    """No positive values, whatever the input."""
    return Sign.NEGATIVE


def inherited(call: Call) -> Sign:
    """That of the first argument: of moves, of means and sums, and of functions that never change a value's sign."""
    return call.sign(0)


def joined(call: Call) -> Sign:
    """That of any tensor in the list of a concatenation."""
    return call.sign(0, "tensors")


def negated(call: Call) -> Sign:
    return opposite(call.sign(0))


def added(call: Call) -> Sign:
    """Of ``a + alpha * b``."""
    return union(call.sign(0), times(call.sign(1, "other"), call.sign(2, "alpha", 1)))


def subtracted(call: Call) -> Sign:
    """Of ``a - alpha * b``."""
    return union(call.sign(0), opposite(times(call.sign(1, "other"), call.sign(2, "alpha", 1))))


def subtracted_from(call: Call) -> Sign:
    """Of ``b - alpha * a``."""
    return union(call.sign(1, "other"), opposite(times(call.sign(0), call.sign(2, "alpha", 1))))


def product(call: Call) -> Sign:
    """Of ``a * b`` and ``a / b``; a tensor times itself is never negative."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    return Sign.POSITIVE if isinstance(a, fx.Node) and a is b else times(call.of(a), call.of(b))


def matrix_product(call: Call) -> Sign:
    """Of a sum of products."""
    second = call.argument(1, "mat2", call.node.kwargs.get("other"))
    return times(call.sign(0), call.of(second))


def power(call: Call) -> Sign:
    """Of ``a ** b``: an even exponent gives no negative values, an odd one leaves the signs as they are."""
    base, exponent = call.sign(0), call.argument(1, "exponent")
    if Sign.NEGATIVE not in base:
        return Sign.POSITIVE
    if isinstance(exponent, (int, float)) and exponent % 1 == 0:
        return base if exponent % 2 else Sign.POSITIVE
    return Sign.BOTH


def clamped(call: Call) -> Sign:
    """Of values held between bounds, of which either may be missing."""
    return _between(call, call.argument(1, "min"), call.argument(2, "max"))


def clamped_hard(call: Call) -> Sign:
    """Of a Hardtanh, which has bounds where none are given."""
    return _between(call, call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0))


def _between(call: Call, low: Any, high: Any) -> Sign:
    sign = call.sign(0)
    if low is not None:
        sign = larger(sign, call.of(low))
    return sign if high is None else smaller(sign, call.of(high))


def larger_of_two(call: Call) -> Sign:
    """Of ``maximum(a, b)`` and of the bound ``clamp_min``."""
    return larger(call.sign(0), _second(call))


def smaller_of_two(call: Call) -> Sign:
    """Of ``minimum(a, b)`` and of the bound ``clamp_max``."""
    return smaller(call.sign(0), _second(call))


def _second(call: Call) -> Sign:
    given = [call.node.kwargs[name] for name in ("other", "min", "max") if name in call.node.kwargs]
    return call.of(call.argument(1, "other", given[0] if given else None))


def largest(call: Call) -> Sign:
    """Of ``max``: of two tensors, or of one, over an axis also with the indices, which are never negative."""
    return _extreme(call, larger)


def smallest(call: Call) -> Sign:
    """Of ``min``, as `largest`."""
    return _extreme(call, smaller)


def _extreme(call: Call, of_two: Callable[[Sign, Sign], Sign]) -> Sign:
    second = call.argument(1, "other")
    if isinstance(second, fx.Node):
        # an axis may be a node too, so the result of one tensor has to be allowed for
        return union(of_two(call.sign(0), call.of(second)), call.sign(0))
    alone = len(call.node.args) + len(call.node.kwargs) == 1
    return call.sign(0) if alone else union(call.sign(0), Sign.POSITIVE)


def leaky(call: Call) -> Sign:
    """Of a LeakyReLU: a negative slope turns negative values into positive ones."""
    return _bent(call, call.sign(1, "negative_slope", 0.01))


def bent(call: Call) -> Sign:
    """Of a PReLU, whose slopes are learned."""
    return _bent(call, Sign.BOTH)


def _bent(call: Call, slope: Sign) -> Sign:
    sign = call.sign(0)
    return union(sign & Sign.POSITIVE, times(sign & Sign.NEGATIVE, slope))


def padded(call: Call) -> Sign:
    """Of padding: a constant comes to the input's values; the other modes repeat them."""
    if call.argument(2, "mode", "constant") != "constant":
        return call.sign(0)
    value = call.argument(3, "value")
    return union(call.sign(0), Sign.ZERO if value is None else call.of(value))


def resized(call: Call) -> Sign:
    """Of an interpolation: bicubic weights are partly negative, all others lie between 0 and 1."""
    name = call.argument(3, "mode", "nearest")
    return Sign.BOTH if name == "bicubic" else call.sign(0)


def chosen(call: Call) -> Sign:
    """Of ``where(condition, a, b)``."""
    return union(call.sign(1, "input"), call.sign(2, "other"))


def filled(call: Call) -> Sign:
    """Of ``masked_fill(mask, value)``."""
    return union(call.sign(0), call.sign(2, "value"))
