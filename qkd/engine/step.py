"""Step: one optimizer step on one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Views
from qkd.distill.plan import Phase, Step
from qkd.distill.taps import Outputs
from qkd.distill.terms import weighted_sum
from qkd.engine.diagnostics import first_non_finite_layer
from qkd.engine.distributed import average_gradients, first_message
from qkd.engine.gradient_shares import gradient_shares
from qkd.engine.optimizer import Span, rate_at, set_rate
from qkd.engine.teacher_cache import TeacherCache
from qkd.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.engine.training_context import Training
    from qkd.recipe import Train
    from qkd.tasks.batch import Batch

Forward = Callable[[Views, Sequence[str], float], Outputs]  # (views, active networks, progress)
CHECK_EVERY = 20  # steps between looks at whether losses are finite: a look makes a GPU wait


@dataclass(frozen=True)
class Action:
    """A step of the plan, the networks that run for it, its optimizer, and cached outputs of frozen networks.

    ``spans``: of the parts with one rate schedule over several phases.
    """

    step: Step
    active: list[str]
    optimizer: Any
    cache: TeacherCache | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @cached_property
    def parameters_per_part(self) -> list[list[nn.Parameter]]:
        """The parameters of the optimizer, part by part."""
        found: dict[str, list[nn.Parameter]] = {}
        for group in self.optimizer.param_groups:
            found.setdefault(group["part"], []).extend(group["params"])
        return list(found.values())

    def set_rates(self, settings: Train, progress: float, epochs: int) -> None:
        """Give every group its learning rate at a progress through a phase of so many epochs."""
        set_rate(self.optimizer, settings.rate * rate_at(progress, settings, epochs))
        for part, (before, total) in self.spans.items():
            share = rate_at((before + progress * epochs) / total, settings, total)
            set_rate(self.optimizer, settings.rate * share, part)

    def outputs(self, forward: Forward, batch: Batch, progress: float) -> Outputs:
        """Every tap of the active networks, from the cache or computed."""
        if self.cache is None:
            return forward(batch.views, self.active, progress)
        return {**self.cache.of(batch.ids), **forward(batch.views, self.cache.without(self.active), progress)}


def take_step(
    training: Training, module: nn.Module, action: Action, batch: Batch, progress: float, epochs: int, *, alone: bool
) -> dict[str, Tensor]:
    """One optimizer step. -> the losses of its terms, detached."""
    step, optimizer, settings = action.step, action.optimizer, training.settings
    action.set_rates(settings, progress, epochs)
    if not alone:
        training.ensemble.set_learners(step.learners)
    optimizer.zero_grad()
    # on a GPU a look waits for the device, and a gradient scaler expects gradients that overflow
    closely = training.device.type == "cpu" and scaler(training) is None
    losses, trouble = _backward(training, module, action, batch, progress, closely=closely)
    if average_gradients(training.fabric, action.parameters, bool(trouble)):
        raise TrainingError(first_message(training.fabric, trouble), key="training.loss-not-finite")
    if settings.clip:
        training.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
        together = [action.parameters] if settings.clip_per == "step" else action.parameters_per_part
        norms = [nn.utils.clip_grad_norm_(parameters, settings.clip) for parameters in together]
        wrong = [norm.item() for norm in norms if closely and not math.isfinite(norm.item())]
        if wrong:
            found = _describe_trouble(training, action, batch, progress, f"norm of the gradient is {wrong[0]}")
            raise TrainingError(found, key="training.gradient-not-finite")
    optimizer.step()
    return losses


def _backward(
    training: Training, module: nn.Module, action: Action, batch: Batch, progress: float, *, closely: bool
) -> tuple[dict[str, Tensor], str]:
    """Accumulate the gradient of a batch. -> the losses, detached, and a message where one is not finite

    Raises TrainingError with that message, but not on several ranks: the others wait for this one's gradient.
    """
    together: dict[str, Tensor] = {}
    trouble = ""
    for piece, share in _pieces(batch, training.settings.accumulate):
        losses, total = _losses(action, module, piece, progress)
        if closely and not math.isfinite(total.item()):
            trouble = trouble or _describe_trouble(
                training, action, piece, progress, first_non_finite_loss(losses, total)
            )
            if training.fabric.world_size == 1:
                raise TrainingError(trouble, key="training.loss-not-finite")
        training.fabric.backward(total if share == 1 else total * share)
        for name, loss in losses.items():
            part = loss.detach() if share == 1 else loss.detach() * share
            together[name] = together[name] + part if name in together else part
    return together, trouble


def _losses(action: Action, forward: Forward, batch: Batch, progress: float) -> tuple[dict[str, Tensor], Tensor]:
    outputs = action.outputs(forward, batch, progress)
    losses = {term.name: term(outputs, batch) for term in action.step.terms}
    return losses, weighted_sum(losses, action.step.terms, progress)


def first_non_finite_loss(losses: Mapping[str, Tensor], total: Tensor) -> str:
    """The first loss that is not finite, or else their weighted sum."""
    named = {**{f"loss {name}": loss for name, loss in losses.items()}, "weighted sum of losses": total}
    return next(f"{name} is {loss.item()}" for name, loss in named.items() if not math.isfinite(loss.item()))


def _describe_trouble(training: Training, action: Action, batch: Batch, progress: float, what: str) -> str:
    """What is not finite, and in which layer first. Call it before the optimizer step, and only to give up afterwards.

    On several ranks the layer is not looked for: that takes another forward pass, which the other ranks do not run.
    """
    ranks = training.fabric.world_size
    if ranks > 1:
        return f"the {what}" + (f" on rank {training.fabric.global_rank}" if what.startswith("loss") else "")
    forward = _outside_of_fabric(training)
    where = first_non_finite_layer(training.ensemble, lambda: _losses(action, forward, batch, progress)[1])
    return f"the {what}: {where}"


def _pieces(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The batch in ``count`` pieces (gradient accumulation), each with its share of the images."""
    if count == 1:
        yield batch, 1
        return
    pieces = batch.split(max(2, -(-len(batch.labels) // count)))
    kept = [piece for piece in pieces if len(piece.labels) > 1 or len(pieces) == 1]  # batch norm cannot learn from one
    images = sum(len(piece.labels) for piece in kept)
    for piece in kept:
        yield piece, len(piece.labels) / images


def gradient_shares_of(training: Training, action: Action, batch: Batch, progress: float) -> dict[str, float]:
    """The gradient shares of a step, on the first piece of a batch."""
    piece, _ = next(_pieces(batch, training.settings.accumulate))
    scale = 2.0**10 if scaler(training) is not None else 1.0
    forward = _outside_of_fabric(training)
    return gradient_shares(
        training.ensemble, lambda: action.outputs(forward, piece, progress), action.step, piece, progress, scale
    )


def scaler(training: Training) -> object:
    """The gradient scaler of fp16; None in other precisions."""
    return getattr(training.fabric.strategy.precision, "scaler", None)


def _outside_of_fabric(training: Training) -> Forward:
    """The ensemble's forward as in training, but without Fabric's wrapper, which insists on its own backward pass."""

    def forward(images: Views, active: Sequence[str], progress: float) -> Outputs:
        with training.fabric.autocast():
            outputs = training.ensemble(images, active, progress)
        return {tap: tensor.float() for tap, tensor in outputs.items()}

    return forward


def check_finite(fabric: Fabric, losses: Mapping[str, list[Tensor]], epoch: int, phase: Phase) -> None:
    """Raises TrainingError, on all ranks, where the last loss of a term is not finite; it names the first such batch."""
    message = ""
    for name, seen in losses.items():
        if not message and seen and not torch.isfinite(seen[-1]):
            first = next(i for i, loss in enumerate(seen) if not torch.isfinite(loss))
            message = f"{position_text(phase, epoch, first)}: the loss {name} is {seen[first].item()}; {ADVICE}"
    if message := first_message(fabric, message):
        raise TrainingError(message, key="training.loss-not-finite")


ADVICE = "the last good checkpoint is kept; try a smaller train.rate or train.clip: 5"


def position_text(phase: Phase, epoch: int, batch: int) -> str:
    """Where in a run, counted from one."""
    return f"phase {phase.name}, epoch {epoch + 1}, batch {batch + 1}"
