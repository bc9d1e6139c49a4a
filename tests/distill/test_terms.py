"""Terms: weights compose, names say who learns what from whom, statistics are read like any other tap."""

from __future__ import annotations

import pytest
import torch

from qkd.distill.imitation import Imitation
from qkd.distill.schedules import Linear
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, TermName, attend, imitate, label, weighted_sum


def test_weights_multiply() -> None:
    assert ((label("student") * 2) * 3).weight_at(0.0) == 6
    rising = label("student") * 2 * Linear(0.0, 1.0)
    assert [rising.weight_at(progress) for progress in (0.0, 0.25, 1.0)] == [0.0, 0.5, 2.0]
    both = label("student") * Linear(0.0, 1.0) * Linear(1.0, 3.0)
    assert both.weight_at(0.5) == pytest.approx(0.5 * 2.0)
    assert "2" in str(rising.weight)


def test_a_term_that_has_a_weight_keeps_it() -> None:
    (first, second) = [term * 0.5 for term in Imitation().mutual("student", ["a", "b"])]
    assert first.weight_at(0.0) == second.weight_at(0.0) == 0.25


def test_multiplying_leaves_the_term_as_it_was() -> None:
    term = label("student")
    _ = term * 3
    assert term.weight_at(0.0) == 1.0


@pytest.mark.parametrize(
    ("term", "name"),
    [
        (label("student"), "label/student"),
        (imitate("student", one(Tap("a")), temperature=4.0), "imitate/student<a"),
        (attend(Tap("student", "layer1"), Tap("a", "layer1")), "attention/student.layer1<a.layer1"),
    ],
)
def test_a_name_is_kind_pupil_and_source(term: Term, name: str) -> None:
    assert term.name == name
    assert TermName.parse(name) == (term.kind, term.pupil, term.source)
    assert str(TermName.parse(name)) == name


def test_the_weighted_sum_is_by_hand() -> None:
    terms = (label("student") * 2, label("a") * Linear(0.0, 1.0))
    losses = {"label/student": torch.tensor(3.0), "label/a": torch.tensor(5.0)}
    assert weighted_sum(losses, terms, 0.5).item() == 2 * 3 + 0.5 * 5
