"""Losses: pure functions of tensors, one per formula."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from qkd.errors import PlanError

Reduction = Literal["mean", "sum", "norm"]


def kl_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher/T) || softmax(student/T))``, the mean over the batch. Logits ``(batch, classes)`` x2 -> ().

    Source: Hinton et al. 2015. Batch-mean, not element-mean: the element-mean of several published codes is smaller by
    the number of classes.
    """
    p, q = (logits.float().div(temperature).log_softmax(1) for logits in (student, teacher))
    return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Where a feature map looks: squared activations summed over channels, unit length. (B, C, H, W) -> (B, H*W).

    Source: Zagoruyko & Komodakis 2017, with p = 2.
    """
    return F.normalize(features.float().square().sum(1).flatten(1), dim=1)


def attention_distance(one: Tensor, other: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """How differently two feature maps look. (B, C1, H, W), (B, C2, H, W) -> (); channel counts may differ.

    ``mean``: squared difference averaged over positions and batch; ``sum``: summed over positions, averaged over the
    batch; ``norm``: the Euclidean distance, averaged over the batch (the form of Pham et al. 2023, eq. 5).
    """
    if one.shape[2:] != other.shape[2:] or one.dim() != 4:
        raise PlanError(f"attention needs feature maps of one height and width, got {_shapes(one, other)}")
    difference = attention_map(one) - attention_map(other)
    if reduction == "norm":
        return (difference.square().sum(1) + 1e-12).sqrt().mean()
    squared = difference.square()
    return squared.mean() if reduction == "mean" else squared.sum(1).mean()


def hint_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape -> (). Source: Romero et al. 2015 (FitNets), eq. 3."""
    if one.shape != other.shape:
        raise PlanError(f"a hint needs features of one shape, got {_shapes(one, other)}")
    return F.mse_loss(one.float(), other.float())


def _shapes(*tensors: Tensor) -> str:
    return " and ".join("x".join(map(str, t.shape[1:])) for t in tensors)
