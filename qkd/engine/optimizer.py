"""Optimizers: parameter groups, and the learning rate as a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import IMPORTANCE, Plan, Step
from qkd.engine.joined_optimizer import JoinedOptimizer
from qkd.quantizers import scales

if TYPE_CHECKING:
    from qkd.recipe import Train


FUSED = ("cpu", "cuda")
"""Devices on which torch has fused SGD and AdamW."""


def optimizer_for(
    step: Step, ensemble: Ensemble, plan: Plan, settings: Train, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """One optimizer over the learners of a step; fused (one pass over memory), unless gradients are unscaled before it.

    Every group carries its ``part`` and ``factor``, its share of the learning rate: a part's from ``plan.rates``, times
    ``settings.scale_rate`` for quantizer scales. Weight decay, scaled by ``plan.decays``, is for weights of two or more
    dimensions alone: it pulls scales, batch norm and importance towards values that mean nothing. Learners in
    ``plan.own_rates`` have an Adam each.
    """
    groups: list[dict] = []
    taken: set[int] = set()
    apart = [learner for learner in sorted(step.learners) if learner in plan.own_rates]
    joined = [_adam(ensemble.modules_of(each), plan.own_rates[each], each.part, taken) for each in apart]
    for learner in sorted(step.learners - set(apart)):
        factor = plan.rate_of(learner)
        decay = 0.0 if learner == IMPORTANCE else settings.weight_decay * plan.decay_of(learner)
        steps, weights, others = _sorted(ensemble.modules_of(learner), taken)
        own = [
            {"params": weights, "factor": factor, "weight_decay": decay},
            {"params": others, "factor": factor, "weight_decay": 0.0},
            {"params": steps, "factor": factor * settings.scale_rate, "weight_decay": 0.0},
        ]
        groups += [{**group, "part": learner.part} for group in own if group["params"]]
    if not groups:
        return JoinedOptimizer(joined)
    main = _main(groups, settings, scaled=scaled)
    return JoinedOptimizer([main, *joined]) if joined else main


def _main(groups: list[dict], settings: Train, *, scaled: bool) -> torch.optim.Optimizer:
    """The recipe's optimizer."""
    fused = None if scaled else all(p.device.type in FUSED for group in groups for p in group["params"]) or None
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate, fused=fused)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=nesterov, fused=fused)


def _adam(modules: Iterable[nn.Module], rate: float, part: str, taken: set[int]) -> torch.optim.Optimizer:
    """Adam at a constant rate: the size of its steps does not depend on that of the gradient, nor on the schedule.

    Without momentum (beta_1 = 0), because what it moves and the networks answer each other, and a direction that is kept
    for ten steps makes the two swing; beta_2 = 0.99 forgets within hundreds of steps, as many as a short run has.
    """
    parameters = [parameter for kind in _sorted(modules, taken) for parameter in kind]
    return torch.optim.Adam([{"params": parameters, "part": part, "constant": True}], lr=rate, betas=(0.0, 0.99))


def _sorted(
    modules: Iterable[nn.Module], taken: set[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Quantizer scales, weights, and the rest; parameters in ``taken`` are left out, those given out are added to it."""
    lists: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for module in modules:
        learned = {id(parameter) for parameter in scales(module)}
        for parameter in module.parameters():
            if id(parameter) in taken:
                continue
            taken.add(id(parameter))
            kind = 0 if id(parameter) in learned else 1 if parameter.dim() > 1 else 2
            lists[kind].append(parameter)
    return lists


def rate_at(progress: float, settings: Train, epochs: int) -> float:
    """The share of the full learning rate at a progress of 0..1 through a phase of so many epochs."""
    warm = settings.warmup / epochs
    if progress < warm:
        return max(progress / warm, 1e-3)
    if settings.schedule == "cosine":
        along = (progress - warm) / max(1 - warm, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))
    if settings.schedule == "step":
        return 0.1 ** sum(progress >= at for at in settings.milestones)
    return 1.0


class Span(NamedTuple):
    """The piece of a rate schedule of ``total`` epochs that begins behind ``before`` of them."""

    before: int
    total: int


def spans(plan: Plan, epochs: Sequence[int], phase: int) -> dict[str, Span]:
    """The spans, in a phase, of the parts with one schedule over all phases in which they learn; ``epochs``: of each phase."""
    found = {}
    for part in plan.one_schedule & plan.phases[phase].parts:
        own = [count if part in each.parts else 0 for each, count in zip(plan.phases, epochs, strict=True)]
        found[part] = Span(sum(own[:phase]), sum(own))
    return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float, part: str | None = None) -> None:
    """Give the groups of a part, or all groups, a learning rate, of which each takes its share; a constant one stays."""
    for group in optimizer.param_groups:
        if not group.get("constant") and part in (None, group["part"]):
            group["lr"] = rate * group["factor"]


def carry_state(
    optimizer: torch.optim.Optimizer, sources: Iterable[torch.optim.Optimizer], parts: Collection[str]
) -> None:
    """Go on with the state (momentum) that the parameters of these parts have in optimizers of the phase before."""
    found = {parameter: state for source in sources for parameter, state in source.state.items()}
    for group in optimizer.param_groups:
        if group["part"] in parts:
            optimizer.state.update({p: found[p] for p in group["params"] if p in found})
