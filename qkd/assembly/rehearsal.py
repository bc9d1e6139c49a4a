"""A rehearsal of a plan: every mistake that would show in the first batch, found before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Ensemble
from qkd.data import Batch
from qkd.distill.plan import EXCHANGE, Phase, Plan, Shape, Step, networks_needed
from qkd.distill.taps import SHARED, Outputs, Tap
from qkd.distill.terms import Term
from qkd.errors import PlanError, nearest
from qkd.quantizers import disabled
from qkd.tasks.spec import DataSpec


def rehearse(parts: Ensemble, plan: Plan, shapes: Mapping[Tap, Shape], facts: DataSpec, *, mixed: bool = False) -> None:
    """Every mistake of wiring that would show in the first batch, before it. Raises PlanError.

    ``mixed``: labels will be shares of two classes, so every term must make do with such.
    """
    _check_exchange(plan, shapes)
    _check_views(parts, plan)
    if plan.product not in parts.networks and plan.head(plan.product) is None:
        raise PlanError(f"the product {plan.product!r} is neither a network nor a head; there are {_known(parts)}")
    _check_phases(plan)
    for phase in plan.phases:
        for step in phase.steps:
            _check_names(parts, plan, phase, step)
            _check_step(parts, plan, phase, step, facts, mixed)


def _check_phases(plan: Plan) -> None:
    if not plan.phases:
        raise PlanError("the plan has no phases; it needs at least one, such as Phase('train', (Step(...),))")
    for phase in plan.phases:
        if not phase.steps or not all(step.terms and step.learners for step in phase.steps):
            raise PlanError(
                f"phase {phase.name}: needs a step, and each step learners and terms for them to learn from"
            )
        if not phase.share > 0:
            raise PlanError(f"phase {phase.name}: its share of the epochs is {phase.share}; it must be above zero")


def _known(parts: Ensemble) -> str:
    return ", ".join([*parts.networks, *parts.heads])


def _check_exchange(plan: Plan, shapes: Mapping[Tap, Shape]) -> None:
    for stage in plan.exchange.stages:
        members = [member for member in plan.exchange.members if plan.exchange.adapter(Tap(member, stage)) is None]
        found = {member: shapes[Tap(member, stage)] for member in members}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{member} {'x'.join(map(str, shape))}" for member, shape in found.items())
            raise PlanError(
                f"match: {stage}: only feature maps (channels, height, width) can be adapted to each other, found {listed}; "
                f"match other layers"
            )


def _check_views(parts: Ensemble, plan: Plan) -> None:
    for part in plan.views:
        if part not in parts.networks:
            raise PlanError(f"views: no network {part!r}{nearest(part, parts.networks)}; there are {_known(parts)}")
    if len({plan.views.get(member, 0) for member in plan.exchange.members}) > 1:
        members = ", ".join(plan.exchange.members)
        raise PlanError(f"views: {members} hand each other features, so they must see the same view of the images")


def _check_names(parts: Ensemble, plan: Plan, phase: Phase, step: Step) -> None:
    names = {*parts.networks, *parts.heads, EXCHANGE}
    for learner in sorted(step.learners):
        part = learner.partition(".")[0]
        if part not in names:
            raise PlanError(
                f"phase {phase.name}: no part {part!r} to learn{nearest(part, names)}; there are {_known(parts)}"
            )
    twice = [name for name, count in Counter(term.name for term in step.terms).items() if count > 1]
    if twice:
        raise PlanError(f"phase {phase.name}: two terms of one step are named {twice[0]}; each needs a name of its own")
    for term in step.terms:
        for tap in term.reads:
            if tap.part not in {*names, SHARED}:
                raise PlanError(
                    f"phase {phase.name}, term {term.name}: reads {tap}, but there is no part {tap.part!r}"
                    f"{nearest(tap.part, names)}; there are {_known(parts)}"
                )


def _check_step(parts: Ensemble, plan: Plan, phase: Phase, step: Step, facts: DataSpec, mixed: bool) -> None:
    """A rehearsal on two images: every term can be computed and reaches a learner, every learner is reached by a term."""
    state = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *facts.shape, generator=generator)
    labels = torch.arange(2) % facts.classes
    batch = Batch(images, torch.eye(facts.classes)[labels] if mixed else labels, torch.arange(2))
    parts.learn(step.learners)
    with disabled(parts):
        outputs = parts(images, sorted(networks_needed(plan, step)))
        losses = {term.name: _rehearse(phase, term, outputs, batch) for term in step.terms}
    total = torch.stack([loss for loss in losses.values() if loss.requires_grad] or [torch.zeros(())]).sum()
    if not total.requires_grad:
        raise PlanError(f"phase {phase.name}: no term depends on a learner ({', '.join(sorted(step.learners))})")
    total.backward()
    idle = [learner for learner in sorted(step.learners) if not _reached(parts.modules_of(learner))]
    parts.zero_grad(set_to_none=True)
    parts.load_state_dict(state)
    if idle:
        hint = "; with `importance: uniform` it need not be taught" if f"{EXCHANGE}.importance" in idle else ""
        raise PlanError(
            f"phase {phase.name}: no term teaches {', '.join(idle)}; {', '.join(losses)} do not reach it{hint}"
        )


def _rehearse(phase: Phase, term: Term, outputs: Outputs, batch: Batch) -> Tensor:
    missing = [str(tap) for tap in term.reads if tap not in outputs]
    if missing:
        raise PlanError(
            f"phase {phase.name}, term {term.name}: nothing is recorded at {', '.join(missing)}; "
            f"there are {', '.join(map(str, outputs))}"
        )
    try:
        return _number(term(outputs, batch))
    except PlanError as error:
        raise PlanError(f"phase {phase.name}, term {term.name}: {error}") from error
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if batch.labels.dim() == 1:
            raise
        said = "it needs one label for each image; train.mixup and train.cutmix make shares of two: leave them out"
        raise PlanError(f"phase {phase.name}, term {term.name}: {said}") from error


def _number(loss: object) -> Tensor:
    """A loss, if it is one. Raises PlanError."""
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"a tensor of {'x'.join(map(str, loss.shape))}" if isinstance(loss, Tensor) else type(loss).__name__
        raise PlanError(
            f"its loss is {found}, not one number as a tensor without dimensions; take its mean, for example"
        )
    return loss


def _reached(modules: Iterable[nn.Module]) -> bool:
    # a gradient of zero is one: equal teachers teach the importance nothing yet
    return any(p.grad is not None for m in modules for p in m.parameters() if p.requires_grad)
