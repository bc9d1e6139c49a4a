"""Steps: what is done with one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.distill.plan import Phase, Step
from qkd.distill.taps import Outputs
from qkd.distill.terms import weighted_sum
from qkd.engine.diagnostics import first_non_finite_layer
from qkd.engine.distributed import average_gradients, first_message
from qkd.engine.gradient_shares import gradient_shares
from qkd.engine.optimizer import rate_at, set_rate
from qkd.engine.teacher_cache import TeacherCache
from qkd.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.data import Batch
    from qkd.engine.train import Training

Views = Tensor | tuple[Tensor, ...]
Forward = Callable[[Views, Sequence[str]], Outputs]
CHECK_EVERY = 20  # steps between looks at whether losses are finite: a look makes a GPU wait


@dataclass(frozen=True)
class Action:
    """A step of the plan, the networks that run for it, its optimizer, and what need not be computed again."""

    step: Step
    active: list[str]
    optimizer: Any
    known: TeacherCache | None = None

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All that the optimizer moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def outputs(self, forward: Forward, batch: Batch) -> Outputs:
        if self.known is None:
            return forward(batch.views, self.active)
        return {**self.known.of(batch.ids), **forward(batch.views, self.known.without(self.active))}


def take_step(
    training: Training, module: nn.Module, action: Action, batch: Batch, progress: float, epochs: int, *, alone: bool
) -> dict[str, Tensor]:
    """One optimizer step. -> the losses of its terms, detached."""
    step, optimizer, settings = action.step, action.optimizer, training.settings
    set_rate(optimizer, settings.rate * rate_at(progress, settings, epochs))
    training.parts.at(progress)
    if not alone:
        training.parts.learn(step.learners)
    optimizer.zero_grad()
    # elsewhere to look is to wait for the device, and a scaler expects gradients that overflow
    closely = training.device.type == "cpu" and scaler(training) is None
    together, trouble = _backward(training, module, action, batch, progress, closely=closely)
    if average_gradients(training.fabric, action.parameters, bool(trouble)):
        raise TrainingError(first_message(training.fabric, trouble))
    if settings.clip:
        training.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
        norm = nn.utils.clip_grad_norm_(action.parameters, settings.clip)
        if closely and not math.isfinite(norm.item()):
            raise TrainingError(_trouble(training, action, batch, progress, f"norm of the gradient is {norm.item()}"))
    optimizer.step()
    return together


def _backward(
    training: Training, module: nn.Module, action: Action, batch: Batch, progress: float, *, closely: bool
) -> tuple[dict[str, Tensor], str]:
    """The gradient of a batch, piece by piece. -> the losses, detached, and what of them is not finite, in words

    Raises TrainingError for that; of several ranks none does, for the others are to hear of it.
    """
    together: dict[str, Tensor] = {}
    trouble = ""
    for piece, share in _pieces(batch, training.settings.accumulate):
        losses, total = _losses(action, module, piece, progress)
        if closely and not math.isfinite(total.item()):
            trouble = trouble or _trouble(training, action, piece, progress, first_non_finite_loss(losses, total))
            if training.fabric.world_size == 1:
                raise TrainingError(trouble)
        training.fabric.backward(total if share == 1 else total * share)
        for name, loss in losses.items():
            part = loss.detach() if share == 1 else loss.detach() * share
            together[name] = together[name] + part if name in together else part
    return together, trouble


def _losses(action: Action, forward: Forward, batch: Batch, progress: float) -> tuple[dict[str, Tensor], Tensor]:
    outputs = action.outputs(forward, batch)
    losses = {term.name: term(outputs, batch) for term in action.step.terms}
    return losses, weighted_sum(losses, action.step.terms, progress)


def first_non_finite_loss(losses: Mapping[str, Tensor], total: Tensor) -> str:
    """The first loss that is not finite, or else their weighted sum."""
    named = {**{f"loss {name}": loss for name, loss in losses.items()}, "weighted sum of losses": total}
    return next(f"{name} is {loss.item()}" for name, loss in named.items() if not math.isfinite(loss.item()))


def _trouble(training: Training, action: Action, batch: Batch, progress: float, what: str) -> str:
    """What is not finite, and which layer was the first; asked before the step is taken, so that what was good stays so.

    Of several ranks the layer is not looked for: that would be to run again, and the others do not. Nothing may follow
    but the end.
    """
    ranks = training.fabric.world_size
    if ranks > 1:
        return f"the {what}" + (f" on rank {training.fabric.global_rank}" if what.startswith("loss") else "")
    forward = _outside_of_fabric(training)
    where = first_non_finite_layer(training.parts, lambda: _losses(action, forward, batch, progress)[1])
    return f"the {what}: {where}"


def _pieces(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The batch in so many pieces, each with its share of the images; batch norm sees a piece at a time."""
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
    return gradient_shares(training.parts, lambda: action.outputs(forward, piece), action.step, piece, progress, scale)


def scaler(training: Training) -> object:
    """What scales the losses of fp16, or None."""
    return getattr(training.fabric.strategy.precision, "scaler", None)


def _outside_of_fabric(training: Training) -> Forward:
    """The parts' forward as in training, but not through Fabric's wrapper, which insists on its own backward pass."""

    def forward(images: Views, active: Sequence[str]) -> Outputs:
        with training.fabric.autocast():
            outputs = training.parts(images, active)
        return {tap: tensor.float() for tap, tensor in outputs.items()}

    return forward


def check_finite(fabric: Fabric, losses: Mapping[str, list[Tensor]], epoch: int, phase: Phase) -> None:
    """Raises TrainingError, on all ranks, naming the first loss that is not a number, looked for where the last is not."""
    said = ""
    for name, seen in losses.items():
        if not said and seen and not torch.isfinite(seen[-1]):
            first = next(i for i, loss in enumerate(seen) if not torch.isfinite(loss))
            said = f"{position_text(phase, epoch, first)}: the loss {name} is {seen[first].item()}; {ADVICE}"
    if said := first_message(fabric, said):
        raise TrainingError(said)


ADVICE = "the last good checkpoint is kept; try a smaller train.rate or train.clip: 5"


def position_text(phase: Phase, epoch: int, batch: int) -> str:
    """Where in a run, as people count."""
    return f"phase {phase.name}, epoch {epoch + 1}, batch {batch + 1}"
