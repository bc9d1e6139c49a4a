"""Dampening: what `train.dampen` adds to the plan of any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qkd.distill.plan import Phase, Plan, Step
from qkd.distill.regularizers import Dampening
from qkd.distill.schedules import Cosine
from qkd.distill.stages import Staged
from qkd.distill.terms import regularize
from qkd.errors import PlanError, SchemeError
from qkd.quantizers import dampens


def dampened(plan: Plan, networks: Mapping[str, Staged], strength: float) -> Plan:
    """The plan with a dampening term for every network with quantized weights, in each step in which it learns as a whole.

    The weight of the term grows from zero to ``strength`` along a cosine, in every phase anew. Raises PlanError where there
    is no such network, and for weights that cannot be dampened.
    """
    if not strength:
        return plan
    learning = {each.part for each in plan.learners if not each.piece and each.part in networks}
    parts = [part for part in sorted(learning) if _dampens(part, networks[part])]
    if not parts:
        raise PlanError(
            f"train.dampen: {strength:g}: no network that learns has quantized weights to dampen; leave it at 0",
            key="dampen.nothing-quantized",
        )
    added = {part: Dampening(part) for part in parts}
    phases = tuple(_in_phase(phase, added, strength) for phase in plan.phases)
    return replace(plan, phases=phases, regularizers=(*plan.regularizers, *added.values()))


def _dampens(part: str, network: Staged) -> bool:
    try:
        return dampens(network.network)
    except SchemeError as error:
        raise PlanError(f"train.dampen: {part}.{error}", key=error.key) from error


def _in_phase(phase: Phase, added: Mapping[str, Dampening], strength: float) -> Phase:
    steps = [
        Step(
            step.learners,
            [*step.terms, *(regularize(each) * Cosine(0.0, strength) for each in added.values() if _whole(step, each))],
        )
        for step in phase.steps
    ]
    return replace(phase, steps=tuple(steps))


def _whole(step: Step, dampening: Dampening) -> bool:
    return any(learner.part == dampening.part and not learner.piece for learner in step.learners)
