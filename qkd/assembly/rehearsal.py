"""Rehearsal: every mistake of a plan that would show in the first batch, found before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import EXCHANGE, IMPORTANCE, Learner, Phase, Plan, Shape, Step, networks_needed
from qkd.distill.stages import Staged
from qkd.distill.taps import SHARED, Outputs, Tap
from qkd.distill.terms import Term
from qkd.errors import PlanError, nearest
from qkd.quantizers import disabled
from qkd.tasks.batch import Batch
from qkd.tasks.spec import DataSpec


def rehearse(
    ensemble: Ensemble, plan: Plan, shapes: Mapping[Tap, Shape], facts: DataSpec, *, mixed: bool = False
) -> None:
    """Check the names in a plan, then run each step on two random images. Nothing in the ensemble changes.

    ``mixed``: labels will be shares of two classes, so every term must accept those. Raises PlanError.
    """
    _check_exchange(plan, shapes)
    _check_views(ensemble, plan)
    if plan.product not in ensemble.networks and plan.head(plan.product) is None:
        raise PlanError(
            f"the product {plan.product!r} is neither a network nor a head; there are {_listed(ensemble)}",
            key="plan.no-such-product",
        )
    _check_phases(plan)
    _check_settings(ensemble, plan)
    for phase in plan.phases:
        for step in phase.steps:
            _check_learners(ensemble, phase, step)
            _check_terms(ensemble, plan, phase, step)
            _check_step(ensemble, plan, phase, step, _batch(facts, mixed=mixed))


def _check_phases(plan: Plan) -> None:
    if not plan.phases:
        raise PlanError(
            "the plan has no phases; it needs at least one, such as Phase('train', (Step(...),))", key="plan.no-phases"
        )
    for phase in plan.phases:
        if not phase.steps or not all(step.terms and step.learners for step in phase.steps):
            raise PlanError(
                f"phase {phase.name}: needs a step, and each step learners and terms for them to learn from",
                key="plan.empty-phase",
            )
        if not phase.share > 0:
            raise PlanError(
                f"phase {phase.name}: its share of the epochs is {phase.share}; it must be above zero",
                key="plan.share-not-positive",
            )


def _check_settings(ensemble: Ensemble, plan: Plan) -> None:
    """Raises PlanError where a rate, a decay or a schedule is for a part that is not there."""
    names = {*ensemble.networks, *ensemble.heads, EXCHANGE}
    scaled = {"rates": plan.rates, "decays": plan.decays}
    named = {word: [each.part for each in given] for word, given in scaled.items()}
    named["one_schedule"] = sorted(plan.one_schedule)
    for word, part in ((word, part) for word, given in named.items() for part in given):
        if part not in names:
            raise PlanError(
                f"{word}: no part {part!r}{nearest(part, names)}; there are {_listed(ensemble)}",
                key="plan.setting-of-no-part",
            )


def _listed(ensemble: Ensemble) -> str:
    return ", ".join([*ensemble.networks, *ensemble.heads])


def _check_exchange(plan: Plan, shapes: Mapping[Tap, Shape]) -> None:
    for stage in plan.exchange.stages:
        members = [member for member in plan.exchange.members if plan.exchange.adapter(Tap(member, stage)) is None]
        found = {member: shapes[Tap(member, stage)] for member in members}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{member} {'x'.join(map(str, shape))}" for member, shape in found.items())
            raise PlanError(
                f"match: {stage}: only feature maps (channels, height, width) can be adapted to each other, found {listed}; "
                f"match other layers",
                key="match.shapes-cannot-be-adapted",
            )


def _check_views(ensemble: Ensemble, plan: Plan) -> None:
    for part in plan.views:
        if part not in ensemble.networks:
            raise PlanError(
                f"views: no network {part!r}{nearest(part, ensemble.networks)}; there are {_listed(ensemble)}",
                key="plan.views-of-no-network",
            )
    if len({plan.views.get(member, 0) for member in plan.exchange.members}) > 1:
        members = ", ".join(plan.exchange.members)
        raise PlanError(
            f"views: {members} exchange features, so they must see the same view of the images",
            key="plan.members-see-different-views",
        )


def _check_learners(ensemble: Ensemble, phase: Phase, step: Step) -> None:
    names = {*ensemble.networks, *ensemble.heads, EXCHANGE}
    for learner in sorted(step.learners):
        if learner.part not in names:
            raise PlanError(
                f"phase {phase.name}: no part {learner.part!r} to learn{_hint(learner, names)}; there are "
                f"{_listed(ensemble)}",
                key="plan.no-such-learner",
            )
        pieces = list(_pieces(ensemble.part(learner.part)))
        if learner.piece and learner.piece not in pieces:
            raise PlanError(
                f"phase {phase.name}: {learner.part} has no {learner.piece!r} to learn{nearest(learner.piece, pieces)}",
                key="plan.no-such-piece",
            )


def _hint(learner: Learner, names: Iterable[str]) -> str:
    """What was meant: a piece written as ``part.piece``, or a name like this one."""
    part, dot, piece = learner.part.partition(".")
    return f"; write Learner({part!r}, {piece!r})" if dot and part in names else nearest(learner.part, names)


def _pieces(part: nn.Module) -> Iterator[str]:
    """The names of what can learn by itself: a network's stages, another part's submodules."""
    yield from part.names if isinstance(part, Staged) else (name for name, _ in part.named_modules())


def _check_terms(ensemble: Ensemble, plan: Plan, phase: Phase, step: Step) -> None:
    names = {*ensemble.networks, *ensemble.heads, *ensemble.statistics, EXCHANGE}
    twice = [name for name, count in Counter(term.name for term in step.terms).items() if count > 1]
    if twice:
        raise PlanError(
            f"phase {phase.name}: two terms of one step are named {twice[0]}; each needs a name of its own",
            key="plan.terms-of-one-name",
        )
    for term in step.terms:
        for tap in term.reads:
            if tap.part not in {*names, SHARED}:
                raise PlanError(
                    f"phase {phase.name}, term {term.name}: reads {tap}, but there is no part {tap.part!r}"
                    f"{nearest(tap.part, names)}; there are {_listed(ensemble)}",
                    key="plan.term-reads-no-part",
                )


def _batch(facts: DataSpec, *, mixed: bool) -> Batch:
    """Two random images; with ``mixed`` labels as shares of the classes. Does not draw from torch's own generator."""
    images = torch.randn(2, *facts.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2) % facts.classes
    return Batch(images, torch.eye(facts.classes)[labels] if mixed else labels, torch.arange(2))


def _check_step(ensemble: Ensemble, plan: Plan, phase: Phase, step: Step, batch: Batch) -> None:
    """One forward and backward pass: every term can be computed, and every learner gets a gradient."""
    state = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    ensemble.set_learners(step.learners)
    with disabled(ensemble):
        outputs = ensemble(batch.images, sorted(networks_needed(plan, step)), 0.0)
        losses = {term.name: _loss(phase, term, outputs, batch) for term in step.terms}
    total = torch.stack([loss for loss in losses.values() if loss.requires_grad] or [torch.zeros(())]).sum()
    if not total.requires_grad:
        raise PlanError(
            f"phase {phase.name}: no term depends on a learner ({', '.join(map(str, sorted(step.learners)))})",
            key="plan.no-term-reaches-a-learner",
        )
    total.backward()
    idle = [learner for learner in sorted(step.learners) if not _has_gradient(ensemble.modules_of(learner))]
    ensemble.zero_grad(set_to_none=True)
    ensemble.load_state_dict(state)
    if idle:
        hint = "; with `importance: uniform` it need not be taught" if IMPORTANCE in idle else ""
        raise PlanError(
            f"phase {phase.name}: no term teaches {', '.join(map(str, idle))}; {', '.join(losses)} do not reach it{hint}",
            key="plan.learner-without-a-term",
        )


def _loss(phase: Phase, term: Term, outputs: Outputs, batch: Batch) -> Tensor:
    missing = [str(tap) for tap in term.reads if tap not in outputs]
    if missing:
        raise PlanError(
            f"phase {phase.name}, term {term.name}: nothing is recorded at {', '.join(missing)}; "
            f"there are {', '.join(map(str, outputs))}",
            key="plan.term-reads-nothing",
        )
    try:
        return _scalar(term(outputs, batch))
    except PlanError as error:
        raise PlanError(f"phase {phase.name}, term {term.name}: {error}", key=error.key) from error
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if batch.labels.dim() == 1:
            raise
        raise PlanError(
            f"phase {phase.name}, term {term.name}: it needs one label for each image; train.mixup and train.cutmix make "
            f"shares of two: leave them out",
            key="plan.term-needs-one-label",
        ) from error


def _scalar(loss: object) -> Tensor:
    """The loss itself. Raises PlanError where it is not one number as a tensor."""
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"a tensor of {'x'.join(map(str, loss.shape))}" if isinstance(loss, Tensor) else type(loss).__name__
        raise PlanError(
            f"its loss is {found}, not one number as a tensor without dimensions; take its mean, for example",
            key="plan.loss-not-a-number",
        )
    return loss


def _has_gradient(modules: Iterable[nn.Module]) -> bool:
    # a gradient of zero is one: equal teachers teach the importance nothing yet
    return any(p.grad is not None for m in modules for p in m.parameters() if p.requires_grad)
