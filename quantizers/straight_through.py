"""The straight-through estimator: the value of one tensor with the gradient of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``x``."""
    if torch.compiler.is_compiling():
        return value + (x - x.detach())
    result: Tensor = _StraightThrough.apply(x, value)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
