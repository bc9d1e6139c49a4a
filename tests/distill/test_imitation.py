"""Imitation: every way to compare logits against numpy, and one spelling of it in every method that has such a term."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qkd.distill.imitation import Imitation
from qkd.distill.method_info import method_info, unused_options
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.methods import METHODS
from qkd.options import options_from
from tests.support.ensembles import LABELS, batch, company, outcome

METHODS_THAT_IMITATE = {
    "kd": 1, "sqakd": 1, "dml": 2, "kdcl": 2, "ctkd": 2, "dgkd": 2, "takd": 2,
    "ffcl": 1, "three_phase": 1, "peers": 2, "iakd": 1, "ceskd": 2,
}  # and with how many teachers  # fmt: skip


def some(seed: int, classes: int = 4) -> Tensor:
    return 3 * torch.randn(6, classes, generator=torch.Generator().manual_seed(seed)) + seed


def unit(z: Tensor) -> np.ndarray:
    rows = z.detach().double().numpy()
    return np.stack([(row - row.mean()) / (1e-7 + row.std(ddof=1)) for row in rows])


def plain(z: Tensor) -> np.ndarray:
    return z.detach().double().numpy()


def probabilities(rows: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    p = np.exp(rows / temperature)
    return p / p.sum(1, keepdims=True)


def expected(logits: str, student: np.ndarray, teacher: np.ndarray, labels: list[int]) -> float:
    """Each divergence by its definition, row by row, at temperature 2 and with DKD's weight 3."""
    if logits == "mse":
        return float(np.mean([((p - q) ** 2).sum() for p, q in zip(student, teacher, strict=True)]))
    heat = 1.0 if logits == "cosine" else 2.0
    total = 0.0
    for p, q, y in zip(probabilities(student, heat), probabilities(teacher, heat), labels, strict=True):
        if logits == "cosine":
            total += 1 - p @ q / np.sqrt((p @ p) * (q @ q))
        elif logits == "kl":
            total += 4 * (q * np.log(q / p)).sum()
        else:
            rest = [np.delete(each, y) / (1 - each[y]) for each in (p, q)]
            total += 4 * (q[y] * np.log(q[y] / p[y]) + (1 - q[y]) * np.log((1 - q[y]) / (1 - p[y])))
            total += 4 * 3 * (rest[1] * np.log(rest[1] / rest[0])).sum()
    return total / len(labels)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("logits", ["kl", "dkd", "cosine", "mse"])
def test_every_divergence_by_its_definition(logits: Any, standardise: bool) -> None:
    student, teacher = some(0), some(1)
    seen = unit if standardise else plain
    found = Imitation(logits, 2.0, standardise, others=3.0).loss(student, teacher, batch())
    assert found.item() == pytest.approx(expected(logits, seen(student), seen(teacher), LABELS.tolist()), rel=1e-5)


def test_a_standardised_pupil_need_not_reach_its_teachers_range() -> None:
    teacher = some(1)
    follower = (0.2 * teacher + 7).requires_grad_()
    ways = [Imitation("kl", 2.0, standardise).loss(follower, teacher, batch()) for standardise in (True, False)]
    assert ways[0].item() < 1e-6 < 0.1 < ways[1].item()


@pytest.mark.parametrize("logits", ["kl", "dkd", "cosine", "mse"])
def test_a_pupil_that_is_undecided_gets_a_finite_gradient(logits: Any) -> None:
    undecided = torch.zeros(6, 4, requires_grad=True)
    Imitation(logits, 2.0, standardise=True).loss(undecided, some(1), batch()).backward()
    assert undecided.grad is not None and undecided.grad.isfinite().all()


def test_a_target_is_constant_unless_told_otherwise() -> None:
    outputs = {Tap("a"): some(0).requires_grad_(), Tap("b"): some(1).requires_grad_()}
    for detached, logits in ((True, "dkd"), (False, "dkd"), (True, "kl"), (False, "kl")):
        term = Imitation(logits).term("a", one(Tap("b")), detach_target=detached)  # type: ignore[arg-type]
        assert term.name == f"{'decouple' if logits == 'dkd' else 'imitate'}/a<b"
        outputs[Tap("b")].grad = None
        term(outputs, batch()).backward()
        assert (outputs[Tap("b")].grad is None) is detached


@pytest.mark.parametrize("name", METHODS_THAT_IMITATE)
def test_every_method_spells_it_alike(name: str) -> None:
    options = options_from(METHODS[name]).parameters
    assert {"logits", "standardise", "others", "temperature"} <= set(options)
    assert options["standardise"].default is False and options["logits"].default == "kl"
    fields = inspect.signature(Imitation).parameters
    assert options["others"].default == fields["others"].default


@pytest.mark.parametrize("logits", ["dkd", "cosine"])
@pytest.mark.parametrize("name", METHODS_THAT_IMITATE)
def test_every_method_does_what_it_says(name: str, logits: str) -> None:
    """The terms between two networks are those of the option, in every phase."""
    teachers = ("scratch", "expert")[: METHODS_THAT_IMITATE[name]]
    more = {"soft": 0.5} if name == "iakd" else {}
    own = {"temperature": 2.0, "others": 3.0, "standardise": True, "logits": logits, **more}
    parts, plan = company(name, *teachers, **own)
    seen = 0
    for phase in plan.phases:
        _, z, outputs = outcome(parts, plan, phase.steps[0])
        for term in phase.steps[0].terms:
            if term.kind in ("imitate", "decouple") and len(term.reads) == 2 and term.source != "virtual":
                assert term.kind == ("decouple" if logits == "dkd" else "imitate")
                pupil, source = (tap.part for tap in term.reads)
                wanted = expected(logits, unit(z[pupil]), unit(z[source]), LABELS.tolist())
                assert term(outputs, batch()).item() == pytest.approx(wanted, rel=1e-4)
                seen += 1
    assert seen or name in ("kdcl", "ceskd")  # an ensemble, or one expert for each image


def test_options_that_need_two_others_name_the_first_that_is_missing() -> None:
    known = method_info(METHODS["dgkd"])
    assert known is not None
    options = {name: each.default for name, each in options_from(METHODS["dgkd"]).parameters.items()}
    found = {soft: unused_options(known.only_with, {**options, "soft": soft}) for soft in (0.0, 0.5)}
    assert "`soft` is above zero" in found[0.0]["others"] and "`logits` is dkd" in found[0.5]["others"]
    assert {"logits", "standardise", "temperature"} <= set(found[0.0])
    assert not {"logits", "standardise", "temperature"} & set(found[0.5])
