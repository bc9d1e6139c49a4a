"""Unheard: what a recipe names and its plan never listens to."""

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

    A layer counts where a term, a head, a survey or an exchange reads it, where it bounds a stage that is borrowed, learns
    or is left free by itself, and where ``train.recompute`` cuts there to save memory.
    """
    plan, setup, method = assembly.plan, assembly.setup, recipe.method.name
    asked, heard = _asked(plan), _heard(plan, setup.stages)
    found = [
        recipe.problem(("teachers", part), f"does nothing: {method} as set here never asks it")
        for part in setup.teachers
        if part not in asked
    ]
    silent = [stage for stage in setup.stages if stage not in heard and not recipe.train.recompute]
    if silent:
        said = f"does nothing at {', '.join(silent)}: {method} as set here reads no features there"
        found.append(recipe.problem("match", said))
    return found


def _asked(plan: Plan) -> frozenset[str]:
    """The networks that run in any step, or in a look at a split, or that are part of the product."""
    steps = [networks_needed(plan, step) for phase in plan.phases for step in phase.steps]
    looked = {tap.part for survey in plan.surveys for tap in survey.reads}
    deployed = {part for head in plan.deployed() for part in head.parts}
    return frozenset({plan.product}.union(*steps, looked, deployed))


def _heard(plan: Plan, stages: tuple[str, ...]) -> set[str]:
    """The stages whose features, or whose borders, make a difference."""
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
    readings = (*(head.reads for head in plan.heads), *(survey.reads for survey in plan.surveys))
    yield from chain.from_iterable(readings)


def _pieces(plan: Plan) -> Iterator[str]:
    """Stages that are taken by themselves, apart from the network they belong to."""
    yield from (learner.partition(".")[2] for learner in plan.learners)
    yield from (stage for anchor in plan.anchors for stage in anchor.leave)
    yield from (head.via.stage for head in plan.heads if head.via is not None)
