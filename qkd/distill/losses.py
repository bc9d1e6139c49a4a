"""Losses as pure functions of tensors, one per formula."""

from __future__ import annotations

from typing import Literal

import torch
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


def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``-sum softmax(teacher/T) log softmax(student/T)``, the mean over the batch. Logits ``(batch, classes)`` x2 -> ().

    KL plus the teacher's entropy: for a constant teacher the gradient at T = 1 is that of KL.
    Source: Mishra & Marr 2018 (Apprentice), the third summand.
    """
    p, q = (logits.float().div(temperature).log_softmax(1) for logits in (student, teacher))
    return -(q.exp() * p).sum(1).mean()


def balanced_divergence(student: Tensor, teacher: Tensor, *, temperature: float, emphasis: float) -> Tensor:
    """Forward plus reverse KL, one of them times ``emphasis``, chosen for every sample. Logits x2 -> ().

    Where the teacher is less certain than the student (larger entropy) the forward one is emphasised, which covers all
    classes of the teacher's distribution; elsewhere the reverse one, which sharpens. Entropies are those of the softened
    distributions. Source: Amara et al. 2022 (BD-KD); the paper's abstract gives the rule, the emphasis is ours.
    """
    p, q = (logits.float().div(temperature).log_softmax(1) for logits in (student, teacher))
    forward, reverse = (q.exp() * (q - p)).sum(1), (p.exp() * (p - q)).sum(1)
    surer = (p.exp() * p).sum(1) > (q.exp() * q).sum(1)  # entropies, negated
    u, v = 1 + (emphasis - 1) * surer, 1 + (emphasis - 1) * ~surer
    return (u * forward + v * reverse).mean() * temperature**2


def cosine_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``1 - cos(softmax(student/T), softmax(teacher/T))``, the mean over the batch. Logits ``(batch, classes)`` x2 -> ().

    Source: Boo et al., Stochastic Precision Ensemble (SPEQ), AAAI 2021. At T = 1 it is the formula we know of
    it; no factor makes up for the gradient that a larger T takes away.
    """
    p, q = (logits.float().div(temperature).softmax(1) for logits in (student, teacher))
    return (1 - F.cosine_similarity(p, q, dim=1)).mean()


def decoupled_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, target: float = 1.0, others: float = 8.0
) -> Tensor:
    """DKD: KL of "the true class or not", and KL among the other classes, each with a weight of its own. -> ()

    ``T^2 (target TCKD + others NCKD)``; with ``others`` equal to the teacher's probability of the other classes it would
    be KL again. Source: Zhao et al. 2022 (DKD), eq. 7; 1 and 8 are their weights for most pairs on CIFAR-100.
    """
    p, q = (logits.float().div(temperature) for logits in (student, teacher))
    rest = F.one_hot(labels, p.shape[1]) == 0
    hidden = [z[rest].view(len(z), -1) for z in (p, q)]
    binary = [
        torch.stack([z.gather(1, labels[:, None])[:, 0], other.logsumexp(1)], 1)
        for z, other in zip((p, q), hidden, strict=True)
    ]
    tckd, nckd = (
        F.kl_div(a.log_softmax(1), b.log_softmax(1), reduction="batchmean", log_target=True)
        for a, b in (binary, hidden)
    )
    return (target * tckd + others * nckd) * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Spatial attention map: squared activations summed over channels, unit length. (B, C, H, W) -> (B, H*W).

    Source: Zagoruyko & Komodakis 2017, with p = 2.
    """
    return F.normalize(features.float().square().sum(1).flatten(1), dim=1)


def attention_distance(one: Tensor, other: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Distance of the attention maps of two feature maps. (B, C1, H, W), (B, C2, H, W) -> (); channel counts may differ.

    ``mean``: squared difference averaged over positions and batch; ``sum``: summed over positions, averaged over the
    batch; ``norm``: the Euclidean distance, averaged over the batch (the form of Pham et al. 2023, eq. 5).
    """
    if one.shape[2:] != other.shape[2:] or one.dim() != 4:
        raise PlanError(
            f"attention needs feature maps of one height and width, got {_shapes(one, other)}",
            key="loss.attention-shapes",
        )
    difference = attention_map(one) - attention_map(other)
    if reduction == "norm":
        return (difference.square().sum(1) + 1e-12).sqrt().mean()
    squared = difference.square()
    return squared.mean() if reduction == "mean" else squared.sum(1).mean()


def hint_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape -> (). Source: Romero et al. 2015 (FitNets), eq. 3."""
    if one.shape != other.shape:
        raise PlanError(f"a hint needs features of one shape, got {_shapes(one, other)}", key="loss.hint-shapes")
    return F.mse_loss(one.float(), other.float())


def _shapes(*tensors: Tensor) -> str:
    return " and ".join("x".join(map(str, t.shape[1:])) for t in tensors)
