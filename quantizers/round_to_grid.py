"""Rounding to a uniform grid with the gradient of LSQ: one pass forward, one backward, no temporary tensors kept.

``y = clip(round(x / s), low, high) * s``; with ``q = y / s`` and *inside* meaning ``low * s < x < high * s``:

    dy/dx = 1 inside, 0 outside                         (straight through)
    dy/ds = q - x / s inside, q (= low or high) outside (Esser et al., ICLR 2020, eq. 3)

For a mid-rise grid ``low`` and ``high`` are halves of odd integers and the levels lie halfway between the multiples of s:
``y = clip(floor(x / s) + 1/2, low, high) * s``, with the same two derivatives.

Summed over the tensor, ``dL/ds = (sum(g * y) - sum(dL/dx * x)) / s``: two dot products, no temporary tensor.
Arithmetic is float32 (float64 for float64 tensors) whatever autocast does: a bfloat16 ``x / s`` would round to a
neighbouring level. ``y`` comes back in the type of ``x``.

There are several implementations of the same numbers: on the CPU, with one scale for a tensor, one block at a time, so
that memory is read and written once; elsewhere whole-tensor operations, which ``torch.compile`` traces and fuses with
what surrounds them; or, on request (see `compile_cores`), kernels of their own: on the CPU those of `c_kernels`, on other
devices the same whole-tensor operations compiled. Behind a batch norm in training, `fused_batch_norm` does both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkd.quantizers import c_kernels

SMALLEST = 1e-8
"""The floor of every scale: far below any trained step, far above the smallest float32."""
BLOCK = 2**18
"""Elements of a block: small enough to stay in the cache, large enough to make the calls cheap."""


def round_to_grid(
    x: Tensor,
    step: Tensor,
    low: float,
    high: float,
    gradient_scale: float,
    *,
    scale: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """``x`` rounded to the grid ``s * {low, low + 1, ..., high}``, in its shape and type; and ``s``.

    Args:
        low, high: two integers, or two halves of odd integers: then no level is zero, and zero is rounded up.
        step: learned step, 0-d for the whole tensor or shaped to broadcast over it, e.g. (O, 1, 1, 1).
        gradient_scale: factor on the gradient of the step (LSQ section 2.2).
        scale: ``s`` where it is not ``positive_scale(step)``; the gradient of the step is then that of ``s * step / step``,
            straight through the function that computed the scale.
        compiled: forward and backward as one kernel each, where there is one for the device and the type.
    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, eq. 1-5.
    """
    s = positive_scale(step) if scale is None else scale
    if compiled and not torch.compiler.is_compiling() and c_kernels.can_round(x, step, s):
        return _RoundNatively.apply(x, step, s, low, high, gradient_scale), s
    return _Round.apply(x, step, s, low, high, gradient_scale, compiled), s


def positive_scale(step: Tensor) -> Tensor:
    """The scale of a stored step, ``max(|step|, SMALLEST)``, detached.

    A step that an optimizer moves through zero is reflected, so it goes on learning instead of staying at the floor.
    """
    return step.detach().abs().clamp_min(SMALLEST)


def direction(step: Tensor) -> Tensor:
    """The derivative of ``positive_scale``: 1 or -1, also at zero."""
    return torch.copysign(torch.ones_like(step), step)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in the type in which it is rounded: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def has_zero(low: float) -> bool:
    """Whether a grid of steps from low up has a level at zero, and not two at half a step from it."""
    return low == int(low)


def nearest_level(ratio: Tensor, low: float, high: float, zero: bool) -> Tensor:
    """The nearest of the levels low, low + 1, ..., high, in place; ``zero`` as `has_zero` says.

    A tie goes to the even integer, or up where no level is zero.
    """
    return (ratio.round_() if zero else ratio.floor_().add_(0.5)).clamp_(low, high)


Kernels = tuple[Callable[..., Tensor], Callable[..., Any]]


def _kernels(x: Tensor, s: Tensor, compiled: bool = False) -> Kernels:
    if torch.compiler.is_compiling():
        return _round_whole, _differentiate_whole
    if compiled and x.device.type != "cpu" and (s.ndim == 0 or s.numel() == len(s)):
        return _round_fused, _differentiate_fused
    in_blocks = s.ndim == 0 and x.device.type == "cpu"
    return (_round_blocks, _differentiate_blocks) if in_blocks else (_round_whole, _differentiate_whole)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, s: Tensor, low: float, high: float, gradient_scale: float, compiled: bool
    ) -> Tensor:
        still = at_least_float32(x)
        s = s.to(still.dtype)
        y = _kernels(x, s, compiled)[0](still, s, low, high, has_zero(low)).to(x.dtype)
        # a bfloat16 y is off the grid by more than the rounding the step learns from, and a compiled kernel finds y
        # faster than memory does
        keep = y.dtype == still.dtype and ctx.needs_input_grad[1] and not compiled
        ctx.save_for_backward(x, step, s, *([y] if keep else []))
        ctx.bounds = low, high
        ctx.zero = has_zero(low)
        ctx.gradient_scale, ctx.compiled = gradient_scale, compiled
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, s, *kept = ctx.saved_tensors
        rounded, differentiated = _kernels(x, s, ctx.compiled)
        if differentiated is _differentiate_fused:
            passed, total = differentiated(at_least_float32(gradient), at_least_float32(x), s, *ctx.bounds, ctx.zero)
        else:
            y = kept[0] if kept else None
            if y is None and ctx.needs_input_grad[1]:
                y = rounded(at_least_float32(x), s, *ctx.bounds, ctx.zero)
            passed, total = differentiated(at_least_float32(gradient), at_least_float32(x), y, s, *ctx.bounds)
        to_x = passed.to(x.dtype) if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            to_step = (total * ctx.gradient_scale / torch.copysign(positive_scale(step), step)).to(step.dtype)
        return to_x, to_step, None, None, None, None, None


class _RoundNatively(torch.autograd.Function):
    """`_Round` by `c_kernels`, with as little Python around it as possible, which is what small tensors wait for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, s: Tensor, low: float, high: float, gradient_scale: float) -> Tensor:
        x = _packed(x)
        ctx.save_for_backward(x, step, s)
        ctx.settings = low, high, gradient_scale, SMALLEST
        return c_kernels.round_rows(x, s, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, s = ctx.saved_tensors
        to_x, to_step = c_kernels.differentiate_rows(_laid_out_as(x, gradient), x, s, step, *ctx.settings)
        return to_x, to_step, None, None, None, None


def _round_whole(x: Tensor, s: Tensor, low: float, high: float, zero: bool) -> Tensor:
    return nearest_level(x / s, low, high, zero).mul_(s)


def _differentiate_whole(
    g: Tensor, x: Tensor, y: Tensor | None, s: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor | None]:
    """The gradient passed on to x, and ``s`` times that of the scale where ``y`` is given."""
    ratio = x / s
    if torch.compiler.is_compiling():
        # two choices instead of one between two conditions: the compiler's code for `or` is several times slower
        passed = torch.where(ratio > low, torch.where(ratio < high, g, 0.0), 0.0)
    else:
        passed = torch.ops.aten.hardtanh_backward(g, ratio, low, high)
    if y is None:
        return passed, None
    if torch.compiler.is_compiling():
        return passed, _summed(g * y - passed * x, s)
    return passed, (g * y).addcmul_(passed, x, value=-1).sum_to_size(s.shape)


def _summed(values: Tensor, s: Tensor) -> Tensor:
    """The sum over numbers that share a scale; of images channel by channel first, in one loop with batch norm's own sums."""
    return values.sum((0, 2, 3)).sum() if s.ndim == 0 and values.ndim == 4 else values.sum_to_size(s.shape)


def _round_blocks(x: Tensor, s: Tensor, low: float, high: float, zero: bool) -> Tensor:
    x = _packed(x)
    y = torch.empty_like(x)
    for source, target in zip(_blocks(x), _blocks(y), strict=True):
        nearest_level(torch.div(source, s, out=target), low, high, zero).mul_(s)
    return y


def _differentiate_blocks(
    g: Tensor, x: Tensor, y: Tensor | None, s: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor | None]:
    """As `_differentiate_whole`, by kernels that take plain numbers, for which other devices would have to be waited for."""
    x = _packed(x)
    g = _laid_out_as(x, g)
    passed = torch.empty_like(x)
    bottom, top = low * s.item(), high * s.item()
    total = None if y is None else torch.zeros_like(s)
    blocks = zip(_blocks(g), _blocks(x), _blocks(passed), _blocks(x if y is None else y), strict=True)
    for given, values, target, rounded in blocks:
        torch.ops.aten.hardtanh_backward.grad_input(given, values, bottom, top, grad_input=target)
        if total is not None:
            total += torch.dot(given, rounded) - torch.dot(target, values)
    return passed, total


@cache
def _compiled() -> Kernels:
    """The whole-tensor kernels, compiled once for tensors of every size."""

    def differentiate(
        g: Tensor, x: Tensor, s: Tensor, low: float, high: float, zero: bool
    ) -> tuple[Tensor, Tensor | None]:
        return _differentiate_whole(g, x, _round_whole(x, s, low, high, zero), s, low, high)

    return (
        torch.compile(_round_whole, dynamic=True, fullgraph=True),
        torch.compile(differentiate, dynamic=True, fullgraph=True),
    )


def _round_fused(x: Tensor, s: Tensor, low: float, high: float, zero: bool) -> Tensor:
    x = _packed(x.detach())
    return _compiled()[0](*_rows(s, x), low, high, zero).as_strided(x.shape, x.stride())


def _differentiate_fused(g: Tensor, x: Tensor, s: Tensor, low: float, high: float, zero: bool) -> tuple[Tensor, Tensor]:
    x, g = _packed(x.detach()), g.detach()
    flat, rows = _rows(s, x)
    given = _laid_out_as(x, g).as_strided(flat.shape, flat.stride())
    passed, total = _compiled()[1](given, flat, rows, low, high, zero)
    return passed.as_strided(x.shape, x.stride()), total.reshape(s.shape)


def _rows(s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A packed tensor as one row, or one for each scale, in the order of memory; and the scales, of a shape that fits.

    So the compiler sees two kinds of tensors, whatever the layers.
    """
    if s.ndim == 0:
        return torch.as_strided(x, (x.numel(),), (1,)), s
    count = x.numel() // len(x)
    return torch.as_strided(x, (len(x), count), (count, 1)), s.reshape(-1, 1)


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    return other if other.stride() == x.stride() else torch.empty_like(x).copy_(other)


def _packed(x: Tensor) -> Tensor:
    """``x`` without gaps or overlaps in memory: itself if it is laid out row by row or channels last."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last or x.is_contiguous() else x.contiguous()


def _blocks(x: Tensor) -> Sequence[Tensor]:
    return torch.as_strided(x, (x.numel(),), (1,)).split(BLOCK)
