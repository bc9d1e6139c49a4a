"""Importance: how much each member of an exchange counts, for a whole layer, each channel or each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Granularity = Literal["layer", "channel", "sample"]


def importance_parameter(granularity: Granularity, members: int, channels: int) -> nn.Parameter:
    """What is learned at one stage, zero at first, which weighs all members alike.

    ``layer``: (members,); ``channel``: (members, channels); ``sample``: (channels, channels), see `attentive_weights`.
    """
    shapes = {"layer": (members,), "channel": (members, channels), "sample": (channels, channels)}
    return nn.Parameter(torch.zeros(shapes[granularity]))


def weights_from(parameter: Tensor, granularity: Granularity, tensors: Sequence[Tensor]) -> Tensor:
    """The weights of the members with these ``tensors`` (B, C, ...): positive, summing to one over the members.

    -> (members,) for ``layer``, (members, C) for ``channel``, (B, members) for ``sample``
    """
    return attentive_weights(tensors, parameter) if granularity == "sample" else parameter.softmax(0)


def attentive_weights(tensors: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """``softmax_i(q^T M h_i / sqrt(C))``: h_i is the mean of member i's features over positions, q that of all h_i.

    Tensors (B, C, ...) and M (C, C) -> (B, members). The features are constants here: members are not to change theirs in
    order to count. Source: the attention among peers of Chen et al. 2020 (OKDDip), dot products of two projections.
    Departures: M is the product of the two projections; one query, the mean, instead of one for each peer, because the
    exchange hands one tensor to all members; divided by sqrt(C), as Vaswani et al. 2017.
    """
    pooled = torch.stack(
        [tensor.detach().flatten(2).mean(2) if tensor.dim() > 2 else tensor.detach() for tensor in tensors]
    )
    scores = torch.einsum("bc,cd,mbd->bm", pooled.mean(0).to(matrix.dtype), matrix, pooled.to(matrix.dtype))
    return (scores / matrix.shape[0] ** 0.5).softmax(1)


def mean_weights(weights: Tensor, granularity: Granularity) -> Tensor:
    """The weights of `weights_from` averaged over channels or samples. -> (members,)"""
    return {"layer": lambda w: w, "channel": lambda w: w.mean(1), "sample": lambda w: w.mean(0)}[granularity](weights)


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor, granularity: Granularity = "layer") -> Tensor:
    """``sum_i w_i F_i`` of tensors (B, C, ...) -> (B, C, ...), with the weights of `weights_from`.

    Source: Pham et al. 2023, eq. 1, for ``layer``.
    """
    if granularity == "layer":
        total: Tensor = _WeightedSum.apply(weights, *tensors)
        return total
    shape = (-1, *[1] * (tensors[0].dim() - 2))
    each = weights if granularity == "channel" else weights.T.unsqueeze(2)  # (members, C) or (members, B, 1)
    return torch.stack(
        [t * w.reshape(*w.shape[:-1], *shape).to(t.dtype) for t, w in zip(tensors, each, strict=True)]
    ).sum(0)


class _WeightedSum(torch.autograd.Function):
    """The sum with one weight for each tensor, in as few passes over memory as it takes; it can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *tensors)
        total = tensors[0] * weights[0]
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            total += tensor * weight
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tensors = ctx.saved_tensors
        to_weights, *needed = ctx.needs_input_grad
        own = torch.stack([_inner(gradient, tensor) for tensor in tensors]).to(weights.dtype) if to_weights else None
        return own, *(gradient * weight if need else None for weight, need in zip(weights, needed, strict=True))


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """The sum of the products of two tensors, without a tensor of products where both are packed alike. -> ()"""
    kind = torch.promote_types(one.dtype, torch.float32)
    if kind is one.dtype is other.dtype and one.stride() == other.stride():
        strides = one.stride()
        order = sorted(range(one.dim()), key=lambda axis: -strides[axis])
        rows, others = one.permute(order), other.permute(order)
        if rows.is_contiguous():
            return torch.dot(rows.flatten(), others.flatten())
    return (one.to(kind) * other.to(kind)).sum()
