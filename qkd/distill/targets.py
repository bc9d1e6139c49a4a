"""Soft targets: labels built from the logits of one or several parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.distill.taps import Tap
from qkd.tasks.batch import Batch


@dataclass(frozen=True)
class Target:
    """The taps a soft target is built from, and how: ``build([tensor, ...], batch) -> (batch, classes)``."""

    name: str
    reads: tuple[Tap, ...]
    build: Callable[[Sequence[Tensor], Batch], Tensor]


def one(tap: Tap) -> Target:
    """The logits of one part, unchanged."""
    return Target(tap.part, (tap,), lambda logits, batch: logits[0])


def mean(taps: Sequence[Tap]) -> Target:
    """The mean of the logits."""
    return Target("mean", tuple(taps), lambda logits, batch: torch.stack(tuple(logits)).mean(0))


def min_logit(taps: Sequence[Tap]) -> Target:
    """The element-wise minimum of logits that were shifted so that the true class of each member is zero.

    Its cross-entropy is at most the smallest of the members', sample by sample. Source: Guo et al. 2020 (KDCL),
    MinLogit; Pham et al. 2023, eq. 7.
    """
    return Target("ensemble", tuple(taps), lambda logits, batch: min_logits(logits, batch.labels))


def naive(taps: Sequence[Tap]) -> Target:
    """For every sample the logits of the member with the lowest cross-entropy. Source: Guo et al. 2020 (KDCL), Naive."""
    return Target("naive", tuple(taps), lambda logits, batch: best_logits(logits, batch.labels))


def linear(taps: Sequence[Tap]) -> Target:
    """The mixture of the members with the lowest cross-entropy over the batch. Source: Guo et al. 2020 (KDCL), Linear."""
    return Target("linear", tuple(taps), lambda logits, batch: mixed_logits(logits, batch.labels))


def weighted(taps: Sequence[Tap], weights: Tap) -> Target:
    """The sum of the logits with the weights (members,) recorded at a tap."""

    def build(tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        *logits, shares = tensors
        return torch.einsum("m,mbc->bc", shares.to(logits[0].dtype), torch.stack(tuple(logits)))

    return Target("weighed", (*taps, weights), build)


Weigh = Callable[[Sequence[Tensor], Tensor], Tensor]  # (logits of the members, labels) -> weights (members, batch)


def mixed(taps: Sequence[Tap], weigh: Weigh, *, temperature: float) -> Target:
    """The members' probabilities, mixed for every sample with weights that sum to one over the members.

    Given as logits whose softmax at ``temperature`` is that mixture: the gradient of KL to it, at that temperature, is that of
    ``sum_i w_i KL_i``, the members' divergences weighted sample by sample, for one divergence instead of n. Source: with
    `confidence` Zhang et al. 2022 (CA-MKD), eq. 3-4.
    """

    def build(logits: Sequence[Tensor], batch: Batch) -> Tensor:
        shares = weigh(logits, batch.labels).log()
        softened = torch.stack([(z.float() / temperature).log_softmax(1) for z in logits])
        return (shares[:, :, None] + softened).logsumexp(0) * temperature

    return Target(weigh.__name__, tuple(taps), build)


def routed(
    taps: Sequence[Tap], choose: Callable[[Sequence[Tensor], Batch], Tensor], also: Sequence[Tap] = ()
) -> Target:
    """One member per sample: the one whose number ``choose([tensor, ...], batch) -> (batch,)`` gives.

    ``choose`` gets the tensors of ``taps`` and ``also``. Source: Amara et al. 2022 (CES-KD).
    """

    def build(tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        chosen = choose(tensors, batch)
        return torch.stack(tuple(tensors[: len(taps)]))[chosen, torch.arange(len(chosen), device=chosen.device)]

    return Target("expert", (*taps, *also), build)


def virtual(part: str, confidence: float) -> Target:
    """A virtual teacher: the true class has the probability ``confidence``, the others share the rest equally.

    Source: Yuan et al. 2020 (teacher-free distillation), eq. 9. Departure: given as logits, the logarithms of those
    probabilities, so that a temperature softens it as it does any other teacher.
    """

    def build(logits: Sequence[Tensor], batch: Batch) -> Tensor:
        return virtual_logits(batch.labels, logits[0].shape[1], confidence)

    return Target("virtual", (Tap(part),), build)


def virtual_logits(labels: Tensor, classes: int, confidence: float) -> Tensor:
    """The logarithms of a virtual teacher's probabilities. (batch,) -> (batch, classes) float32"""
    least = 1e-6
    others = torch.full((len(labels), classes), max(1 - confidence, least) / (classes - 1), device=labels.device)
    return others.scatter(1, labels[:, None], max(confidence, least)).log()


def min_logits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``min_i (z_i - z_i[label])`` over the members. [(batch, classes)], (batch,) -> (batch, classes)."""
    shifted = [z - z.gather(1, labels[:, None]) for z in logits]
    return torch.stack(shifted).amin(0)


def best_logits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The logits of the member with the lowest cross-entropy, sample by sample. -> (batch, classes)"""
    wrong = torch.stack([cross_entropies(z, labels) for z in logits])
    return torch.stack(tuple(logits))[wrong.argmin(0), torch.arange(len(labels), device=labels.device)]


def strata(difficulty: Tensor, count: int) -> Tensor:
    """The stratum 0..count-1 of every sample, from the easiest to the hardest, equally many each. (N,) -> (N,) int64

    ``floor(rank / N * count)``, rank being a sample's place by difficulty.
    """
    return difficulty.argsort(stable=True).argsort() * count // len(difficulty)


def mixed_logits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``sum_i w_i z_i`` with the weights of ``best_mixture``, which get no gradient. -> (batch, classes)"""
    weights = best_mixture(logits, labels).to(logits[0].dtype)
    return torch.einsum("m,mbc->bc", weights, torch.stack(tuple(logits)))


@torch.no_grad()
def best_mixture(logits: Sequence[Tensor], labels: Tensor, *, rounds: int = 3) -> Tensor:
    """The weights, positive and summing to one, that minimise the cross-entropy of the mixed logits. -> (members,)

    Convex, so a few rounds in which every pair of members divides its common weight anew come close to the optimum; with
    two members one such step is exact.
    """
    z = torch.stack([each.double() for each in logits])
    weights = torch.full((len(z),), 1 / len(z), dtype=torch.float64, device=z.device)
    right = F.one_hot(labels, z.shape[2])
    for _ in range(rounds if len(z) > 2 else 1):
        for i, j in combinations(range(len(z)), 2):
            both = weights[i] + weights[j]
            others = torch.einsum("m,mbc->bc", weights, z) - weights[i] * z[i] - weights[j] * z[j]
            share = _best_share(others + both * z[j], both * (z[i] - z[j]), right)
            weights[i], weights[j] = both * share, both * (1 - share)
    return weights


def _best_share(z: Tensor, direction: Tensor, right: Tensor) -> Tensor:
    """The s in 0..1 that minimises the cross-entropy of ``z + s direction``, by bisection of its slope. -> ()"""
    low, high = z.new_zeros(()), z.new_ones(())
    for _ in range(24):
        middle = (low + high) / 2
        rising = (((z + middle * direction).softmax(1) - right) * direction).sum() > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return (low + high) / 2


def confidence(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``w_i = (1 - softmax_i(CE_i)) / (n - 1)`` for every sample: most for whom it is easiest. -> (members, batch)

    Constant, and a sum of one over the members. Source: Zhang et al. 2022 (CA-MKD), eq. 3; their code divides by n once more.
    """
    wrong = torch.stack([cross_entropies(z.detach(), labels) for z in logits])
    return (1 - wrong.softmax(0)) / (len(logits) - 1)


def certainty(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``w_i = (1 - H_i / sum_j H_j) / (n - 1)``, H the entropy of a member's probabilities; no label. -> (members, batch)

    Source: Kwon et al. 2020 (EBKD), as in the code of CA-MKD; it leaves out the division by n - 1, and divides by n.
    """
    p = torch.stack([z.detach().float().log_softmax(1) for z in logits])
    unsure = -(p.exp() * p).sum(2) + 1e-12
    return (1 - unsure / unsure.sum(0)) / (len(logits) - 1)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of every sample. (batch, classes), (batch,) -> (batch,)"""
    return F.cross_entropy(logits.float(), labels, reduction="none")
