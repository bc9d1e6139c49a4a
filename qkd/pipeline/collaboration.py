"""Measures at the end of training whether its networks worked together: what they know as one, and whether teachers learned."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkd.distill.plan import Learner, Plan, Setup
from qkd.distill.taps import LOGITS, SHARED, Tap
from qkd.engine.metrics import MEAN
from qkd.report.collaboration import gradient_beside, gradient_shares, importance_moved
from qkd.storage.collaboration import CombinedTeacher, TeacherGradient
from qkd.tasks.classification import share_right
from qkd.tasks.paired import paired

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

HARDLY = 0.1  # a teacher whose steps are smaller than this share of the student's is named


class Team(NamedTuple):
    """Networks whose logits are combined into one teacher. ``averaged``: those whose mean it is, where no part gives it."""

    part: str
    members: tuple[str, ...]

    @property
    def averaged(self) -> tuple[str, ...]:
        return self.members if self.part == MEAN else ()


def team_of(plan: Plan, setup: Setup) -> Team | None:
    """The combined teacher of a plan: a head or the shared logits that a term learns from, or else a mean of teachers.

    The mean stands for any target that one term makes of the logits of several teachers. None where all are taught by single
    networks.
    """
    terms = [term for phase in plan.phases for step in phase.steps for term in step.terms]
    pupils = {Tap(part) for part in setup.all_networks}  # other terms read feature maps, and heads may give some
    sources = [{tap.part for tap in term.reads[1:] if tap.stage == LOGITS} for term in terms if term.reads[0] in pupils]
    for name in [*(head.name for head in plan.heads), SHARED]:
        members = _members(plan, setup, name)
        if len(members) > 1 and any(name in each for each in sources):
            return Team(name, members)
    several = [each & set(setup.teachers) for each in sources]
    most = max(several, key=len, default=set())
    return Team(MEAN, tuple(part for part in setup.teachers if part in most)) if len(most) > 1 else None


def _members(plan: Plan, setup: Setup, name: str) -> tuple[str, ...]:
    """The networks that a head or the exchange combines, in the recipe's order."""
    found, wanted = set(), [name]
    while wanted:
        part = wanted.pop()
        head = plan.head(part)
        if part == SHARED:
            found |= set(plan.exchange.members)
        elif head is not None:
            wanted += [tap.part for tap in head.reads]
        else:
            found.add(part)
    return tuple(part for part in setup.all_networks if part in found)


def collaboration(
    training: Training, setup: Setup, classes: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, Any]:
    """What ``result.json`` says of it, as far as there are teachers. ``classes``: of every part on the test split, (N,)."""
    assert training.run is not None
    lines, team = training.run.metrics(), team_of(training.plan, setup)
    gradients = {part: found for part in setup.teachers if (found := _gradient(training, setup, part, lines))}
    found = {
        "combined": combined_teacher(team, classes, labels) if team else None,
        "gradients": gradients or None,
        "importance_moved": importance_moved(lines),
    }
    return {name: value for name, value in found.items() if value is not None}


def combined_teacher(team: Team, classes: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The combined teacher beside its best member, as a `CombinedTeacher`."""
    right = {part: classes[part] == labels for part in (team.part, *team.members)}
    best = max(team.members, key=lambda part: int(right[part].sum()))
    beside = paired(right[best], right[team.part])
    pairs = itertools.combinations(team.members, 2)
    apart = [float(100 * (classes[one] != classes[other]).mean()) for one, other in pairs]
    return CombinedTeacher(
        part=team.part,
        top1=round(share_right(classes[team.part], labels), 4),
        members=team.members,
        best_member=best,
        best_top1=round(share_right(classes[best], labels), 4),
        difference=round(beside.difference, 4),
        standard_error=round(beside.standard_error, 4),
        disagreement=round(statistics.fmean(apart), 4),
    ).to_json()


def _gradient(training: Training, setup: Setup, part: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The gradient of a teacher; None where it never learned in one phase with the student."""
    ratios = [ratio for _, ratio in gradient_beside(lines, part)]
    if not ratios:
        return None
    median, plan = statistics.median(ratios), training.plan
    rate = plan.rate_of(Learner(part)) / plan.rate_of(Learner(setup.student))
    # adaptive optimizers divide by the norm, so that a small gradient does not make small steps
    small = training.settings.optimizer == "sgd" and median * rate < HARDLY
    return TeacherGradient(round(median, 4), gradient_shares(lines, part), small).to_json()
