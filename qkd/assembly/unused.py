"""Unused: teachers and matched layers that a recipe names and its plan does not read."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING

from qkd.distill.plan import Plan, networks_needed
from qkd.distill.taps import LOGITS, Tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qkd.assembly.assemble import Assembly
    from qkd.errors import Problem
    from qkd.recipe import Recipe


def find_unused(recipe: Recipe, assembly: Assembly) -> list[Problem]:
    """Matched layers and teachers that change nothing, at their lines.

    A layer is used where a term, a head, a statistic or an exchange reads it, where it bounds a stage that is borrowed,
    learns or is exempt from a regularizer by itself, and where ``train.recompute`` cuts there to save memory.
    """
    plan, setup, method = assembly.plan, assembly.setup, recipe.method.name
    running, read = _running(plan), _read(plan, setup.stages)
    found = [
        recipe.problem(("teachers", part), f"unused: no loss term of {method} as set here reads this teacher")
        for part in setup.teachers
        if part not in running
    ]
    unread = [stage for stage in setup.stages if stage not in read and not recipe.train.recompute]
    if unread:
        message = f"{', '.join(unread)}: unused: {method} as set here reads no features there"
        found.append(recipe.problem("match", message))
    return found


def _running(plan: Plan) -> frozenset[str]:
    """The networks that run in any step or for a statistic, or that are part of the product."""
    steps = [networks_needed(plan, step) for phase in plan.phases for step in phase.steps]
    measured = {tap.part for each in plan.statistics for tap in each.reads}
    deployed = {part for head in plan.deployed() for part in head.parts}
    return frozenset({plan.product}.union(*steps, measured, deployed))


def _read(plan: Plan, stages: tuple[str, ...]) -> set[str]:
    """The stages whose features are read, or whose borders matter."""
    borders = {after: before for before, after in pairwise((*stages, LOGITS))}
    pieces = {stage for stage in _pieces(plan) if stage}
    bounds = {borders[stage] for stage in pieces if stage in borders}
    exchanged = plan.exchange.stages if plan.exchange.members else ()
    return {tap.stage for tap in _taps(plan)} | set(exchanged) | pieces | bounds


def _taps(plan: Plan) -> Iterator[Tap]:
    for phase in plan.phases:
        for step in phase.steps:
            for term in step.terms:
                yield from term.reads
    readings = (*(head.reads for head in plan.heads), *(each.reads for each in plan.statistics))
    yield from chain.from_iterable(readings)


def _pieces(plan: Plan) -> Iterator[str]:
    """Stages that learn, are borrowed or are exempt from a regularizer by themselves."""
    yield from (learner.piece for learner in plan.learners)
    yield from (stage for each in plan.regularizers for stage in each.leave)
    yield from (head.via.stage for head in plan.heads if head.via is not None)
