"""Losses as pure functions of tensors, one per formula."""

from __future__ import annotations

from typing import Any, Literal

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


def standardised(logits: Tensor) -> Tensor:
    """``(z - mean) / (1e-7 + deviation)`` over the classes, sample by sample. (batch, classes) -> (batch, classes) float32

    The deviation is the unbiased one, as in the authors' code. Source: Sun et al., CVPR 2024 (logit standardisation), eq. 9
    with the temperature left to the divergence.
    """
    z = logits.float()
    return (z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True))


def cosine_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos(softmax(teacher), softmax(student))``, the mean over the batch. Logits ``(batch, classes)`` x2 -> ().

    Source: Boo et al., AAAI 2021 (SPEQ), the loss for teachers that are noisy.
    """
    p, q = (logits.float().softmax(1) for logits in (student, teacher))
    return 1 - F.cosine_similarity(p, q, dim=1).mean()


def squared_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the logits, summed over the classes, the mean over the batch. Logits x2 -> ()."""
    return (student.float() - teacher.float()).square().sum(1).mean()


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
    squares: Tensor = _SumOfSquares.apply(features.float())
    return F.normalize(squares.flatten(1), dim=1)


class _SumOfSquares(torch.autograd.Function):
    """The sum of squares over axis 1, whose gradient takes one pass over memory instead of three; the same numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * gradient).unsqueeze(1)


def attention_distance(one: Tensor, other: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Distance of the attention maps of two feature maps. (B, C1, H, W), (B, C2, H, W) -> (); channel counts may differ.

    ``mean``: squared difference averaged over positions and batch; ``sum``: summed over positions, averaged over the
    batch; ``norm``: the Euclidean distance, averaged over the batch (the form of Pham et al. 2023, eq. 5).

    Maps have unit length and no negative entry, so ``sum`` is at most 2 and ``norm`` at most 1.42 at any resolution, while
    ``mean`` is ``sum / (H W)``. A weight g of ``mean`` therefore equals g / (H W) of ``sum``: the customary 1000, which
    belongs to ``mean`` (the code of Zagoruyko & Komodakis and those derived from it), is 0.98 at maps of 32x32, 3.9 at
    16x16 and 15.6 at 8x8; CMT-KD's 100 with ``mean`` is 0.098, 0.39 and 1.56.
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


def correlation_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape whose channels were standardised over batch and positions -> ().

    It is ``2 (1 - r)``, r being the correlation of two channels, averaged over the channels: whatever scale and offset
    they have, 0 for the same pattern and 2 for unrelated ones; 1 where one of the two is constant. The standardisation is
    that of a batch norm without parameters; every tensor is its own, so no scale is drawn towards the other's.
    """
    if one.shape != other.shape:
        raise PlanError(f"a hint needs features of one shape, got {_shapes(one, other)}", key="loss.hint-shapes")
    a, b = (F.batch_norm(features.float(), None, None, training=True) for features in (one, other))
    return F.mse_loss(a, b)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join("x".join(map(str, t.shape[1:])) for t in tensors)
