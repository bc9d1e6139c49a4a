"""Optimizers: parameter groups, and the learning rate as a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import Plan, Step
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
    dimensions alone: it pulls scales, batch norm and importance towards values that mean nothing.
    """
    groups: list[dict] = []
    taken: set[int] = set()
    for learner in sorted(step.learners):
        factor, decay = plan.rate_of(learner), settings.weight_decay * plan.decay_of(learner)
        steps, weights, others = _sorted(ensemble.modules_of(learner), taken)
        own = [
            {"params": weights, "factor": factor, "weight_decay": decay},
            {"params": others, "factor": factor, "weight_decay": 0.0},
            {"params": steps, "factor": factor * settings.scale_rate, "weight_decay": 0.0},
        ]
        groups += [{**group, "part": learner.part} for group in own if group["params"]]
    fused = None if scaled else all(p.device.type in FUSED for group in groups for p in group["params"]) or None
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate, fused=fused)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=nesterov, fused=fused)


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
    """Give the groups of a part, or all groups, a learning rate, of which each takes its share."""
    for group in optimizer.param_groups:
        if part is None or group["part"] == part:
            group["lr"] = rate * group["factor"]


def carry_state(
    optimizer: torch.optim.Optimizer, sources: Iterable[torch.optim.Optimizer], parts: Collection[str]
) -> None:
    """Go on with the state (momentum) that the parameters of these parts have in optimizers of the phase before."""
    found = {parameter: state for source in sources for parameter, state in source.state.items()}
    for group in optimizer.param_groups:
        if group["part"] in parts:
            optimizer.state.update({p: found[p] for p in group["params"] if p in found})
