"""Formulas against hand-worked numbers and properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from qkd.data import Batch
from qkd.distill.losses import attention_distance, attention_map, hint_distance, kl_divergence
from qkd.distill.taps import Tap
from qkd.distill.targets import mean, min_logit, min_logits, one
from qkd.errors import PlanError
from tests.support.refusals import Refused


def test_kl_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_divergence(student, teacher, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)
    hot = kl_divergence(student * 4, teacher * 4, temperature=4.0).item()
    assert hot == pytest.approx(16 * by_hand, rel=1e-5)


def test_kl_is_zero_only_where_distributions_agree() -> None:
    logits = torch.randn(5, 7)
    assert kl_divergence(logits, logits + 3.0, temperature=4.0).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_divergence(logits, logits.flip(1), temperature=4.0).item() > 0


def test_kl_is_batch_mean_not_element_mean() -> None:
    student, teacher = torch.randn(6, 10), torch.randn(6, 10)
    element = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean()
    assert kl_divergence(student, teacher, temperature=1.0).item() == pytest.approx(10 * element.item(), rel=1e-5)


def test_kl_gradient_is_difference_of_probabilities() -> None:
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64)
    kl_divergence(student.float(), teacher.float(), temperature=2.0).backward()
    expected = 2.0 * ((student / 2).softmax(1) - (teacher / 2).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-4, atol=1e-6)


def test_attention_map_has_unit_length_and_ignores_channel_order() -> None:
    features = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(attention_map(features).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(attention_map(features), attention_map(features.flip(1)))


def test_attention_distance_by_hand() -> None:
    one_place = torch.zeros(1, 1, 1, 2)
    one_place[..., 0] = 5.0
    other_place = one_place.flip(-1)
    assert attention_distance(one_place, other_place, reduction="sum").item() == pytest.approx(2.0)
    assert attention_distance(one_place, other_place, reduction="mean").item() == pytest.approx(1.0)
    assert attention_distance(one_place, other_place, reduction="norm").item() == pytest.approx(math.sqrt(2.0))


def test_attention_compares_different_channel_counts_but_not_sizes(refused: Refused) -> None:
    assert attention_distance(torch.randn(2, 4, 5, 5), torch.randn(2, 9, 5, 5)).isfinite()
    with refused(PlanError, "loss.attention-shapes"):
        attention_distance(torch.randn(2, 4, 5, 5), torch.randn(2, 4, 3, 3))


def test_hint_is_mean_squared_error_and_names_shapes(refused: Refused) -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert hint_distance(a, b).item() == pytest.approx(((a - b) ** 2).mean().item())
    with refused(PlanError, "loss.hint-shapes"):
        hint_distance(a, b[:, :2])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_min_logit_identities(members: int) -> None:
    logits = [torch.randn(64, 10, dtype=torch.float64) * 3 for _ in range(members)]
    labels = torch.randint(0, 10, (64,))
    target = min_logits(logits, labels)
    assert torch.equal(target.gather(1, labels[:, None]), torch.zeros(64, 1, dtype=torch.float64))
    best = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in logits]).amin(0)
    assert (F.cross_entropy(target, labels, reduction="none") <= best + 1e-12).all()
    moved = min_logits([z + 7.0 * i for i, z in enumerate(logits)], labels)
    torch.testing.assert_close(moved, target)
    same = min_logits([logits[0]] * 3, labels)
    torch.testing.assert_close(same.softmax(1), logits[0].softmax(1))


def test_targets_say_whom_they_read() -> None:
    taps = [Tap("a"), Tap("b")]
    logits = [torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 5.0]])]
    seen = Batch(logits[0], torch.tensor([0]), torch.tensor([0]))
    assert mean(taps).reads == min_logit(taps).reads == tuple(taps)
    assert mean(taps).build(logits, seen).tolist() == [[2.0, 4.0]]
    assert one(taps[1]).build([logits[1]], seen) is logits[1]
