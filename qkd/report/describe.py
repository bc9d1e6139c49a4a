"""Describes in words what training a recipe will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qkd.assembly.assemble import Assembly
from qkd.assembly.build import module_paths
from qkd.distill.plan import EXCHANGE, Learner, Phase, Plan, Step, epochs_per_phase
from qkd.distill.taps import Tap

if TYPE_CHECKING:
    from qkd.distill.heads import Head
    from qkd.distill.terms import Term
    from qkd.recipe import Recipe


def describe(recipe: Recipe, assembly: Assembly) -> str:
    """The participants, the exchange, and per phase who learns from whom, at which layer and with which weight. -> text"""
    plan = assembly.plan
    lines = [f"method   {recipe.method.name}", *(_option(*pair) for pair in recipe.method.options.items())]
    lines += ["", "parts"]
    for part in recipe.networks:
        view = f", sees view {plan.views.get(part, 0) + 1} of {plan.num_views} of each batch" * (plan.num_views > 1)
        lines.append(f"  {part:<10} {_network(part, recipe, assembly)}{view}")
    lines += [_head(head, plan) for head in plan.heads]
    lines += _exchange(recipe, assembly)
    if joint := recipe.pretrain.joint_epochs:
        lines += ["", f"before anything is quantized: all phases in float, {joint} epochs"]
    for phase, epochs in zip(plan.phases, epochs_per_phase(plan, recipe.train.epochs), strict=True):
        lines += ["", f"phase {phase.name}: {epochs} epochs", *_phase(phase, assembly)]
    lines += _collaboration(recipe, assembly)
    lines += ["", f"product  {_product(plan)}: the only part that is exported"]
    return "\n".join(lines)


def _network(part: str, recipe: Recipe, assembly: Assembly) -> str:
    if part in recipe.views:
        return f"view {recipe.views[part]}; no parameters of its own, no gradient"
    entry = recipe.owners[part]
    bits = entry.quantize.title if entry.quantize else "float"
    size = sum(p.numel() for p in assembly.ensemble.part(part).parameters())
    start = f"starts from {entry.start_from}" + f", seed {recipe.seed_of(part)}" * entry.is_seeded
    return f"{entry.build} {bits}, {size:,} parameters, {start}"


def _head(head: Head, plan: Plan) -> str:
    borrowed = f", classified by {head.via.part}" if head.via else ""
    stays = "" if head in plan.deployed() else ", not in the product"
    return f"  {head.name:<10} {head.about or 'classifier'} on {', '.join(map(str, head.reads))}{borrowed}{stays}"


def _product(plan: Plan) -> str:
    """The name of the product and its parts."""
    heads = plan.deployed()
    if not heads:
        return plan.product
    names = [head.name for head in heads]
    networks = [str(tap) for head in heads for tap in head.reads if tap.part not in names]
    borrowed = [str(head.via) for head in heads if head.via]
    return f"{plan.product} ({', '.join(dict.fromkeys([*networks, *names, *borrowed]))})"


def _option(name: str, value: Any) -> str:
    return f"  {name} = {value}"


def _exchange(recipe: Recipe, assembly: Assembly) -> list[str]:
    exchange = assembly.plan.exchange
    if not exchange.members:
        return ["", "exchange  none"]
    summary = (type(exchange).__doc__ or "").strip().splitlines()[0]
    lines = ["", f"exchange  {type(exchange).__name__}: {summary}", f"  members  {', '.join(exchange.members)}"]
    for stage in exchange.stages:
        where = ", ".join(f"{part} at {module_paths(recipe, part)[stage]}" for part in exchange.members)
        lines.append(f"  {stage:<8} {where}")
        adapted = {part: exchange.adapter(Tap(part, stage)) for part in exchange.members}
        lines += [f"           adapter for {part}: {way}, not in the product" for part, way in adapted.items() if way]
    return lines


def _collaboration(recipe: Recipe, assembly: Assembly) -> list[str]:
    """Which terms reach each teacher that learns, and which networks begin as copies of each other."""
    from qkd.assembly.equal_starts import equal_starts
    from qkd.assembly.teaching import reaching_terms

    lines = []
    for phase in assembly.plan.phases:
        for step in phase.steps:
            for part, terms in reaching_terms(assembly, step).items():
                if part in assembly.setup.teachers:
                    listed = ", ".join(f"{_weight(term.weight)} x {term.name}" for term in terms)
                    lines.append(f"  {part:<10} in phase {phase.name} from {listed}")
    lines = ["", "teachers that learn", *lines] if lines else []
    for parts in equal_starts(recipe):
        lines += [
            "",
            f"equal beginnings  {', '.join(parts)}: the same weights, so one of them knows what all of them know",
        ]
    return lines


def _phase(phase: Phase, assembly: Assembly) -> list[str]:
    lines = []
    for number, step in enumerate(phase.steps, 1):
        prefix = f"  step {number}: " if len(phase.steps) > 1 else "  "
        lines.append(f"{prefix}learners {', '.join(_rate(learner, assembly) for learner in sorted(step.learners))}")
        frozen = sorted(_frozen(step, assembly))
        if frozen:
            lines.append(f"  frozen   {', '.join(frozen)}")
        lines += [f"  {_weight(term.weight):>8} x {term.name}{_dropout(term)}" for term in step.terms]
    return lines


def _rate(learner: Learner, assembly: Assembly) -> str:
    if learner in assembly.plan.own_rates:
        return f"{learner} (Adam at {assembly.plan.own_rates[learner]:g})"
    factor = assembly.plan.rate_of(learner)
    return str(learner) if factor == 1 else f"{learner} (rate x {factor:g})"


def _frozen(step: Step, assembly: Assembly) -> set[str]:
    from qkd.distill.plan import networks_needed

    return set(networks_needed(assembly.plan, step)) - step.parts - assembly.setup.tied.keys() - {EXCHANGE}


def _dropout(term: Term) -> str:
    return f"  ({term.dropout})" if term.dropout is not None else ""


def _weight(weight: float | Callable[[float], float]) -> str:
    if not callable(weight):
        return f"{weight:g}"
    described = type(weight).__str__ is not object.__str__  # schedules describe themselves, plain functions do not
    return f"({weight})" if described else f"{weight(0.0):g}..{weight(1.0):g}"
