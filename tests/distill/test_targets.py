"""Targets and schedules against arithmetic written a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.data import Batch
from qkd.distill.losses import kl_divergence
from qkd.distill.schedules import Constant, Cosine, Decay, Linear, Ramp, Review
from qkd.distill.taps import Tap
from qkd.distill.targets import (
    Weigh,
    best_logits,
    best_mixture,
    certainty,
    confidence,
    linear,
    mixed,
    mixed_logits,
    naive,
    routed,
    strata,
)
from qkd.errors import PlanError
from tests.support.refusals import Refused

ROWS, CLASSES = 6, 5


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def probabilities(z: Tensor, temperature: float) -> np.ndarray:
    e = np.exp(z.double().numpy() / temperature)
    return e / e.sum(1, keepdims=True)


def members(count: int, rows: int = 32) -> tuple[list[Tensor], Tensor]:
    return [logits(seed, rows) for seed in range(count)], torch.arange(rows) % CLASSES


@pytest.mark.parametrize("count", [2, 3])
def test_confidence_and_certainty_by_their_definitions(count: int) -> None:
    z, labels = members(count)
    p = np.stack([probabilities(each, 1.0) for each in z])
    wrong = -np.log(p[:, np.arange(len(labels)), labels])
    entropy = -(p * np.log(p)).sum(2)
    expected = [
        (1 - np.exp(wrong) / np.exp(wrong).sum(0)) / (count - 1),
        (1 - entropy / entropy.sum(0)) / (count - 1),
    ]
    for weigh, wanted in zip((confidence, certainty), expected, strict=True):
        found = weigh(z, labels)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.sum(0), torch.ones(len(labels)))
    best = confidence(z, labels).argmax(0)
    assert torch.equal(best, torch.from_numpy(wrong.argmin(0)))


@pytest.mark.parametrize("weigh", [confidence, certainty])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_divergence_to_the_mixture_has_the_gradient_of_the_weighted_divergences(
    weigh: Weigh, temperature: float
) -> None:
    """CA-MKD sums, over its teachers, KL weighted sample by sample."""
    z, labels = members(3)
    seen = Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels)))
    mixture = mixed([Tap(name) for name in "abc"], weigh, temperature=temperature).build(z, seen)
    pupil = logits(9, len(labels)).double().requires_grad_()
    shares = weigh(z, labels).double()
    q = (pupil / temperature).log_softmax(1)
    apart = torch.stack([(p := (each.double() / temperature).softmax(1)) * (p.log() - q) for each in z]).sum(2)
    (wanted,) = torch.autograd.grad(temperature**2 * (shares * apart).sum(0).mean(), pupil)
    other = pupil.detach().float().requires_grad_()
    kl_divergence(other, mixture, temperature=temperature).backward()
    assert other.grad is not None
    torch.testing.assert_close(other.grad.double(), wanted, rtol=1e-3, atol=1e-6)


def test_who_is_never_right_has_no_weight_and_who_agrees_has_an_equal_one() -> None:
    z, labels = members(2)
    torch.testing.assert_close(confidence([z[0], z[0].clone()], labels), torch.full((2, len(labels)), 0.5))
    sure = F.one_hot(labels, CLASSES) * 1000.0
    target = mixed([Tap("a"), Tap("b")], confidence, temperature=2.0)
    built = target.build([sure, -sure], Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels))))
    assert torch.equal(built.argmax(1), labels) and not built.isnan().any()


def test_naive_takes_whoever_is_least_wrong() -> None:
    z, labels = members(3)
    found = best_logits(z, labels)
    for row, label in enumerate(labels.tolist()):
        wrong = [-math.log(probabilities(each, 1.0)[row, label]) for each in z]
        assert torch.equal(found[row], z[int(np.argmin(wrong))][row])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_linear_is_the_best_mixture(count: int) -> None:
    """No mixture on a fine grid, and none drawn at random, is less wrong."""
    z, labels = members(count)
    weights = best_mixture(z, labels)
    assert weights.sum().item() == pytest.approx(1.0) and (weights >= 0).all()
    stacked = torch.stack([each.double() for each in z])

    def wrong(w: Tensor) -> float:
        return F.cross_entropy(torch.einsum("m,mbc->bc", w.double(), stacked), labels).item()

    drawn = torch.distributions.Dirichlet(torch.ones(count)).sample((2000,))
    assert wrong(weights) <= min([wrong(w) for w in drawn] + [wrong(w) for w in torch.eye(count)]) + 1e-4
    torch.testing.assert_close(mixed_logits(z, labels), torch.einsum("m,mbc->bc", weights.float(), torch.stack(z)))


def test_linear_gives_all_weight_to_a_member_that_is_right() -> None:
    labels = torch.arange(8) % CLASSES
    right = 2.0 * F.one_hot(labels, CLASSES).float()
    assert best_mixture([right, -right], labels).tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_strata_are_of_one_size_easy_samples_first() -> None:
    assert strata(torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2]), 3).tolist() == [2, 0, 1, 1, 2, 0]
    assert strata(torch.zeros(5), 2).bincount().tolist() == [3, 2]  # ties: the earlier is the easier


def test_targets_read_what_they_are_built_from() -> None:
    taps = [Tap("a"), Tap("b")]
    assert naive(taps).reads == linear(taps).reads == tuple(taps)
    target = routed(taps, lambda z, batch: z[2][:, 0].long(), also=[Tap("judge")])
    assert target.reads == (*taps, Tap("judge"))
    a, b, judge = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0.0, 0, 0]])
    nothing = torch.zeros(2, dtype=torch.long)
    assert target.build([a, b, judge], Batch(a, nothing, nothing))[:, 0].tolist() == [1.0, 0.0]


def test_schedules_by_hand() -> None:
    assert [Constant(0.3)(t) for t in (0.0, 1.0)] == [0.3, 0.3]
    assert [Linear(1.0, 3.0, until=0.5)(t) for t in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, 3.0]
    assert [Cosine(0.0, 1.0)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    ramp = [Ramp(until=80 / 300)(epoch / 300) for epoch in (0, 20, 40, 60, 80, 300)]
    assert ramp == pytest.approx([0.007, 0.060, 0.287, 0.732, 1.0, 1.0], abs=1e-3)
    assert [Decay(100.0)(epoch / 50) for epoch in (0, 10, 20)] == pytest.approx([100, 2.82, 0.0798], rel=1e-2)
    assert [Review(0.5, 1.0)(t) for t in (0.0, 0.25, 0.5, 0.625, 0.75, 1.0)] == [0.5, 0.75, 0.5, 0.75, 0.5, 1.0]


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Constant(0.5), "0.5"),
        (Linear(0, 1), "0 -> 1 linearly"),
        (Cosine(1, 0, until=0.5), "1 -> 0 along a cosine until 0.5 of the phase"),
        (Ramp(2.0), "ramp up to 2"),
        (Decay(100.0), "100 x 0.7^(50 t)"),
        (Review(0.5, 1.0), "0.5 -> 1 linearly, again from 0, 0.5, 0.75"),
    ],
)
def test_schedules_say_what_they_are(schedule: object, text: str) -> None:
    assert str(schedule) == text


def test_a_review_that_goes_backwards_is_refused(refused: Refused) -> None:
    with refused(PlanError, "schedule.review-points"):
        Review(0.0, 1.0, at=(0.0, 0.6, 0.5))
