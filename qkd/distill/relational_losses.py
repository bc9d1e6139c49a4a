"""Relational losses: they compare the relations among the samples of a batch, whatever the shapes of the features.

Features are ``(batch, ...)`` on both sides; only the number of samples must agree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.errors import PlanError

TINY = 1e-12


def similarity_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the two row-normalised Gram matrices -> ().

    Source: Tung & Mori 2019 (similarity-preserving distillation), eq. 2-4; their weight is 3000.
    """
    a, b = (F.normalize(_gram(_flat(features)), dim=1) for features in (one, other))
    return F.mse_loss(a, b)


def distance_relation(one: Tensor, other: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs, each side in units of its mean distance -> ().

    Source: Park et al. 2019 (RKD), eq. 4-6; their weight is 25. Maps are averaged over positions first.
    """
    a, b = (_distances(_pooled(features)) for features in (one, other))
    a, b = (d / (d.sum() / (d > 0).sum().clamp(min=1)).clamp(min=TINY) for d in (a, b))
    return F.smooth_l1_loss(a, b)


def angle_relation(one: Tensor, other: Tensor) -> Tensor:
    """Huber loss between the cosines of all angles that three samples span -> ().

    Source: Park et al. 2019 (RKD), eq. 7-8; their weight is 50. Maps are averaged over positions first.
    """
    a, b = (_cosines(_pooled(features)) for features in (one, other))
    return F.smooth_l1_loss(a, b)


def relational_distance(one: Tensor, other: Tensor) -> Tensor:
    """RKD as it is used: 25 times the distance relation plus 50 times the angle relation -> (). Source: Park et al. 2019."""
    return 25 * distance_relation(one, other) + 50 * angle_relation(one, other)


def contrastive_distance(one: Tensor, other: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE within the batch: cross-entropy of finding a sample of ``one`` among all of ``other``, and vice versa -> ().

    Cross-entropy over the cosines within the batch (van den Oord et al. 2018, InfoNCE), maps averaged over positions;
    both need as many channels. Departure from Tian et al. 2020 (CRD): no memory of negatives outside the batch.
    """
    a, b = (F.normalize(_pooled(features), dim=1) for features in (one, other))
    if a.shape != b.shape:
        raise PlanError(
            f"contrast needs features of equally many channels, got {a.shape[1]} and {b.shape[1]}",
            key="loss.contrast-shapes",
        )
    cosines, right = a @ b.t() / temperature, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(cosines, right) + F.cross_entropy(cosines.t(), right)) / 2


def information_flow(one: Tensor, other: Tensor) -> Tensor:
    """Jeffreys divergence of the conditional probabilities that one sample is another's neighbour, by two kernels -> ().

    Kernels: cosine ``(1 + cos) / 2`` and Student's t ``1 / (1 + distance)``, rows normalised to one; the mean of
    ``(P - Q)(log P - log Q)`` over all pairs, summed over the kernels.
    Source: Passalis et al. 2020 (PKT-H), eq. 5-7 and the authors' code.
    """
    total = one.new_zeros((), dtype=torch.float32)
    for kernel in (_cosine_kernel, _student_kernel):
        p, q = (_rows(kernel(_flat(features))) for features in (other, one))
        total = total + ((p - q) * (p.log() - q.log())).mean()
    return total


def alignment(one: Tensor, other: Tensor) -> Tensor:
    """Linear CKA of a batch: 1 if the features are equal up to rotation and scale, 0 if unrelated -> ().

    The unbiased estimate, because the plain one is near 1 for any two features of many channels in a small batch.
    0 for fewer than four samples, where it is undefined. Source: Kornblith et al. 2019, eq. 3; Nguyen et al. 2021, eq. 3.
    """
    if len(one) < 4:
        return one.new_zeros((), dtype=torch.float32)
    a, b = (_gram(_flat(features)).fill_diagonal_(0) for features in (one, other))
    scale = (_dependence(a, a) * _dependence(b, b)).clamp(min=TINY).sqrt()
    return (_dependence(a, b) / scale).clamp(0, 1)


def _flat(features: Tensor) -> Tensor:
    return features.float().flatten(1)


def _pooled(features: Tensor) -> Tensor:
    return features.float().flatten(2).mean(2) if features.dim() > 2 else features.float()


def _gram(x: Tensor) -> Tensor:
    return x @ x.t()


def _dependence(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate of HSIC times ``n (n - 3)``, from Gram matrices without their diagonals."""
    n = len(a)
    return (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)


def _distances(x: Tensor) -> Tensor:
    """Euclidean, with zeros on the diagonal that send no gradient (the root's is infinite there)."""
    gram = _gram(x)
    square = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    apart = (square > 1e-6) & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return torch.where(apart, square.where(apart, torch.ones_like(square)).sqrt(), torch.zeros_like(square))


def _cosines(x: Tensor) -> Tensor:
    """``cos`` of the angle at i between the directions to j and k, zero where two of them coincide. -> (B, B, B)"""
    gram, distance = _gram(x), _distances(x)
    at = gram.diagonal()
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + at[:, None, None]
    lengths = distance[:, :, None] * distance[:, None, :]
    return torch.where(lengths > 0, products / lengths.clamp(min=TINY), torch.zeros_like(products))


def _cosine_kernel(x: Tensor) -> Tensor:
    return (1 + _gram(F.normalize(x, dim=1))) / 2


def _student_kernel(x: Tensor) -> Tensor:
    return 1 / (1 + _distances(x))


def _rows(affinity: Tensor) -> Tensor:
    affinity = affinity.clamp(min=1e-6)  # opposite samples have cosine -1, and the logarithm wants a positive number
    return affinity / affinity.sum(1, keepdim=True)
