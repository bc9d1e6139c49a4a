"""Losses against straight-line float64 arithmetic written a second time, and their identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from qkd.distill.losses import balanced_divergence, decoupled_divergence, kl_divergence, soft_cross_entropy
from qkd.distill.relational_losses import (
    alignment,
    angle_relation,
    distance_relation,
    information_flow,
    similarity_distance,
)

ROWS, CLASSES = 6, 5


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def probabilities(z: Tensor, temperature: float) -> np.ndarray:
    e = np.exp(z.double().numpy() / temperature)
    return e / e.sum(1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(1)


def test_soft_cross_entropy_is_divergence_plus_entropy() -> None:
    s, t = probabilities(logits(0), 2.0), probabilities(logits(1), 2.0)
    expected = (divergence(t, s) + entropy(t)).mean()
    assert soft_cross_entropy(logits(0), logits(1), temperature=2.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("temperature", "emphasis"), [(1.0, 3.0), (4.0, 2.0)])
def test_balanced_divergence_emphasises_forward_where_the_teacher_is_less_sure(
    temperature: float, emphasis: float
) -> None:
    s, t = probabilities(logits(0, 40), temperature), probabilities(logits(1, 40), temperature)
    total = 0.0
    for p, q in zip(s, t, strict=True):
        forward, reverse = (q * np.log(q / p)).sum(), (p * np.log(p / q)).sum()
        unsure = -(q * np.log(q)).sum() > -(p * np.log(p)).sum()
        total += emphasis * forward + reverse if unsure else forward + emphasis * reverse
    found = balanced_divergence(logits(0, 40), logits(1, 40), temperature=temperature, emphasis=emphasis)
    assert found.item() == pytest.approx(temperature**2 * total / 40, rel=1e-5)


def test_balanced_divergence_without_emphasis_is_symmetric() -> None:
    one = balanced_divergence(logits(0), logits(1), temperature=2.0, emphasis=1.0)
    other = balanced_divergence(logits(1), logits(0), temperature=2.0, emphasis=1.0)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)


def test_decoupled_divergence_by_its_definition() -> None:
    labels = torch.arange(ROWS) % CLASSES
    s, t = probabilities(logits(0), 4.0), probabilities(logits(1), 4.0)
    tckd = nckd = 0.0
    for p, q, y in zip(s, t, labels.tolist(), strict=True):
        tckd += q[y] * math.log(q[y] / p[y]) + (1 - q[y]) * math.log((1 - q[y]) / (1 - p[y]))
        rest_p, rest_q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        nckd += (rest_q * np.log(rest_q / rest_p)).sum()
    found = decoupled_divergence(logits(0), logits(1), labels, temperature=4.0, target=1.0, others=8.0)
    assert found.item() == pytest.approx(16 * (tckd + 8 * nckd) / ROWS, rel=1e-5)


def test_decoupled_divergence_weighted_by_the_rest_is_kl() -> None:
    """KL = TCKD + (1 - p_T[label]) NCKD, sample by sample: eq. 5 of the paper."""
    for row in range(ROWS):
        s, t, label = logits(0)[row : row + 1], logits(1)[row : row + 1], torch.tensor([row % CLASSES])
        rest = 1 - t.softmax(1)[0, label].item()
        found = decoupled_divergence(s, t, label, temperature=1.0, target=1.0, others=rest)
        assert found.item() == pytest.approx(kl_divergence(s, t, temperature=1.0).item(), rel=1e-4, abs=1e-6)


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed)).relu() + 0.1


def flat(x: Tensor) -> np.ndarray:
    return x.double().flatten(1).numpy()


def pooled(x: Tensor) -> np.ndarray:
    return x.double().flatten(2).mean(2).numpy()


def huber(a: np.ndarray, b: np.ndarray) -> float:
    d = np.abs(a - b)
    return float(np.where(d < 1, d**2 / 2, d - 0.5).mean())


def by_similarity(a: Tensor, b: Tensor) -> float:
    grams = []
    for x in (flat(a), flat(b)):
        gram = np.array([[x[i] @ x[j] for j in range(ROWS)] for i in range(ROWS)])
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(((grams[0] - grams[1]) ** 2).sum() / ROWS**2)


def by_distance(a: Tensor, b: Tensor) -> float:
    tables = []
    for x in (pooled(a), pooled(b)):
        table = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(ROWS)] for i in range(ROWS)])
        tables.append(table / table[table > 0].mean())
    return huber(*tables)


def by_angle(a: Tensor, b: Tensor) -> float:
    tables = []
    for x in (pooled(a), pooled(b)):
        table = np.zeros((ROWS,) * 3)
        for i, j, k in product(range(ROWS), repeat=3):
            u, v = x[j] - x[i], x[k] - x[i]
            if i not in (j, k):
                table[i, j, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        tables.append(table)
    return huber(*tables)


def by_flow(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for kernel in ("cosine", "student"):
        rows = []
        for x in (flat(a), flat(b)):
            table = np.zeros((ROWS, ROWS))
            for i, j in product(range(ROWS), repeat=2):
                cosine = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
                table[i, j] = (1 + cosine) / 2 if kernel == "cosine" else 1 / (1 + np.linalg.norm(x[i] - x[j]))
            rows.append(table / table.sum(1, keepdims=True))
        q, p = rows
        total += float(((p - q) * (np.log(p) - np.log(q))).mean())
    return total


def by_alignment(a: Tensor, b: Tensor) -> float:
    """HSIC as a sum over all quadruples of different samples, which is what makes it unbiased."""
    k, m = (x @ x.T for x in (flat(a), flat(b)))

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        return sum(x[i, j] * (y[i, j] + y[q, r] - 2 * y[i, q]) for i, j, q, r in permutations(range(ROWS), 4))

    return max(0.0, hsic(k, m)) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(
    ("loss", "again"),
    [
        (similarity_distance, by_similarity),
        (distance_relation, by_distance),
        (angle_relation, by_angle),
        (information_flow, by_flow),
        (alignment, by_alignment),
    ],
)
def test_relations_between_features_of_different_shapes(
    loss: Callable[[Tensor, Tensor], Tensor], again: Callable[[Tensor, Tensor], float]
) -> None:
    a, b = features(0, 3, 4, 4), features(1, 7, 2, 2)
    assert loss(a, b).item() == pytest.approx(again(a, b), rel=2e-4)


@pytest.mark.parametrize("loss", [similarity_distance, distance_relation, angle_relation, information_flow])
def test_relations_vanish_between_equals_and_send_finite_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = features(0, 3, 4, 4), features(1, 3, 4, 4).requires_grad_()
    assert loss(a, a).item() == pytest.approx(0.0, abs=1e-6)
    loss(b, a).backward()
    assert b.grad is not None and b.grad.isfinite().all() and b.grad.abs().sum() > 0
    twins = torch.ones(ROWS, 3, 4, 4, requires_grad=True)
    loss(twins, a).backward()
    assert twins.grad is not None and twins.grad.isfinite().all()


@pytest.mark.parametrize("loss", [distance_relation, angle_relation])
def test_rkd_knows_no_scale_and_no_shift(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = features(0, 9)
    assert loss(a, 5 * a + 2).item() == pytest.approx(0.0, abs=1e-5)


def test_alignment_knows_no_rotation_and_no_scale() -> None:
    a = features(0, 9)
    rotation = torch.linalg.qr(torch.randn(9, 9))[0]
    assert alignment(a, 3 * a @ rotation).item() == pytest.approx(1.0, abs=1e-4)
    assert 0 <= alignment(a, features(1, 9)).item() < 1
    unrelated = [alignment(torch.randn(16, 200), torch.randn(16, 200)).item() for _ in range(20)]
    assert sum(unrelated) / 20 < 0.1
    assert alignment(a[:3], a[:3]).item() == 0.0
