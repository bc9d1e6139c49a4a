"""Train: phases, epochs, steps. The loop knows plans and never a method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.errors import RunError, TrainingError
from qkd.evaluate import logits, top1
from qkd.forward import Parts
from qkd.optimize import optimizer_for, rate_at, set_rate
from qkd.plan import Phase, Plan, Step, needed, rounds
from qkd.quantizers import reestimate_batch_norm
from qkd.run import BEST, LAST, Run
from qkd.terms import Term, weighted_sum

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.data import Batch, Data
    from qkd.recipe import Train

CHECK_EVERY = 20  # steps between looks at whether losses are finite: a look makes a GPU wait
Listener = Callable[[str, Mapping[str, Any]], None]  # ("epoch", values), ("step", values)


@dataclass
class Cursor:
    """How far training is: what a checkpoint holds beside tensors."""

    phase: int = 0
    epoch: int = 0  # epochs done in this phase
    steps: int = 0
    seconds: float = 0.0
    best: float = -1.0


@dataclass(frozen=True)
class Training:
    """Everything the loop needs, put together once."""

    parts: Parts
    plan: Plan
    data: Data
    settings: Train
    batch: int
    seed: int
    fabric: Fabric
    run: Run | None = None
    reestimate: bool = False
    max_steps: int | None = None
    listen: Listener = field(default=lambda event, values: None)

    @property
    def device(self) -> torch.device:
        return self.fabric.device


def train(training: Training, *, resume: bool = False) -> Cursor:
    """Run all phases; the parts then hold the checkpoint of the product that was best on the validation split.

    With ``resume`` it goes on behind the last finished epoch, bit-identical to a run that was never interrupted.
    """
    plan, settings = training.plan, training.settings
    module = training.fabric.setup_module(training.parts, move_to_device=True)
    cursor, saved = Cursor(), None
    if resume and training.run is not None:
        saved = training.run.load_state(LAST)
        cursor = Cursor(**saved["cursor"])
        training.parts.load_state_dict(saved["parts"])
        training.run.forget_after(cursor.steps)
    for index, (phase, epochs) in enumerate(zip(plan.phases, rounds(plan, settings.epochs), strict=True)):
        if index < cursor.phase or _exhausted(training, cursor):
            continue
        if index > cursor.phase:
            cursor.phase, cursor.epoch = index, 0
        optimizers = [
            training.fabric.setup_optimizers(optimizer_for(step, training.parts, plan, settings))
            for step in phase.steps
        ]
        if saved is not None:
            _restore(optimizers, saved)
            saved = None
        while cursor.epoch < epochs and not _exhausted(training, cursor):
            _epoch(training, module, phase, optimizers, cursor, epochs)
    if training.run is not None:
        training.parts.load_state_dict(training.run.load_state(BEST)["parts"])
    return cursor


def _exhausted(training: Training, cursor: Cursor) -> bool:
    return training.max_steps is not None and cursor.steps >= training.max_steps


def _epoch(
    training: Training, module: nn.Module, phase: Phase, optimizers: list[Any], cursor: Cursor, epochs: int
) -> None:
    """One epoch, its evaluation, its line of metrics and its checkpoint."""
    start = time.perf_counter()
    measured = _steps(training, module, phase, optimizers, cursor, epochs)
    cursor.epoch += 1
    val = validate(training)
    cursor.seconds += time.perf_counter() - start
    best = val >= cursor.best
    cursor.best = max(val, cursor.best)
    values: dict[str, Any] = {
        "phase": phase.name,
        "epoch": cursor.epoch,
        "epochs": epochs,
        "steps": cursor.steps,
        **measured,
        "val/top1": val,
        **training.parts.exchange.metrics(),
        "seconds": round(cursor.seconds, 3),
    }
    if training.run is not None:
        training.run.log(values)
        state = _state(training, optimizers, cursor)
        if best:
            training.run.save_state(BEST, {"parts": state["parts"], "cursor": state["cursor"]})
        training.run.save_state(LAST, state)
    training.listen("epoch", values)


def _steps(
    training: Training, module: nn.Module, phase: Phase, optimizers: list[Any], cursor: Cursor, epochs: int
) -> dict[str, float]:
    """All batches of one epoch. -> mean loss per term, gradient share per term, images per second."""
    terms = {term.name: term for step in phase.steps for term in step.terms}
    history: dict[str, list[Tensor]] = {name: [] for name in terms}
    values: dict[str, float] = {}
    look = (
        cursor.epoch % max(1, epochs // 10) == 0
    )  # gradient shares cost a backward pass per term: ten looks are enough
    count, images, start = _length(training), 0, time.perf_counter()
    for step in phase.steps[:1]:
        training.parts.learn(step.learners)
    for number, batch in enumerate(_batches(training, cursor)):
        progress = (cursor.epoch + number / count) / epochs
        for step, optimizer in zip(phase.steps, optimizers, strict=True):
            set_rate(optimizer, training.settings.rate * rate_at(progress, training.settings, epochs))
            if look and number == 0:
                values |= gradient_shares(training, module, step, batch, progress)
            losses = _step(training, module, step, optimizer, batch, progress, alone=len(phase.steps) == 1)
            for name, loss in losses.items():
                history[name].append(loss)
        images += len(batch.labels)
        cursor.steps += 1
        if number % CHECK_EVERY == 0 or number == count - 1:
            _check_finite(history, cursor, phase)
            training.listen("step", {"phase": phase.name, "done": progress, "epoch": cursor.epoch, "epochs": epochs})
        if _exhausted(training, cursor):
            break
    _check_finite(history, cursor, phase)
    mean = {f"train/loss/{name}": torch.stack(seen).mean().item() for name, seen in history.items()}
    return {**mean, **values, "images_per_second": round(images / (time.perf_counter() - start), 1)}


def _step(
    training: Training, module: nn.Module, step: Step, optimizer: Any, batch: Batch, progress: float, *, alone: bool
) -> dict[str, Tensor]:
    """One optimizer step. -> the losses of its terms, detached."""
    if not alone:
        training.parts.learn(step.learners)
    outputs = module(batch.images, sorted(needed(training.plan, step)))
    losses = {term.name: term(outputs, batch) for term in step.terms}
    optimizer.zero_grad()
    training.fabric.backward(weighted_sum(losses, step.terms, progress))
    if training.settings.clip:
        training.fabric.clip_gradients(module, optimizer, max_norm=training.settings.clip, error_if_nonfinite=False)
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def gradient_shares(
    training: Training, module: nn.Module, step: Step, batch: Batch, progress: float
) -> dict[str, float]:
    """How much of the gradient each term brings to each learner: norms of its weighted gradient, as shares of their sum."""
    training.parts.learn(step.learners)
    random = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in training.parts.named_buffers()}
    outputs = module(batch.images, sorted(needed(training.plan, step)))
    shares: dict[str, float] = {}
    for learner in sorted(step.learners):
        parameters = [p for m in training.parts.modules_of(learner) for p in m.parameters() if p.requires_grad]
        norms = {term.name: _norm(term, outputs, batch, parameters, progress) for term in step.terms}
        total = sum(norms.values()) or 1.0
        shares |= {f"gradient/{learner}/{name}": round(norm / total, 4) for name, norm in norms.items() if norm}
    for name, buffer in training.parts.named_buffers():
        buffer.copy_(buffers[name])  # a look must leave no trace, in batch-norm statistics neither
    torch.set_rng_state(random)
    return shares


def _norm(term: Term, outputs: Any, batch: Batch, parameters: list[nn.Parameter], progress: float) -> float:
    loss = term(outputs, batch) * term.weight_at(progress)
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(sum(g.detach().float().square().sum() for g in gradients if g is not None)) ** 0.5


def _check_finite(history: Mapping[str, list[Tensor]], cursor: Cursor, phase: Phase) -> None:
    for name, seen in history.items():
        if seen and not torch.isfinite(seen[-1]):
            first = next(i for i, loss in enumerate(seen) if not torch.isfinite(loss))
            raise TrainingError(
                f"phase {phase.name}, epoch {cursor.epoch + 1}, batch {first + 1}: the loss {name} is {seen[first].item()}; "
                f"the last good checkpoint is kept; try a smaller train.rate or train.clip: 5"
            )


def _length(training: Training) -> int:
    count = len(training.data.train.labels)
    return max(1, -(-count // training.batch))


def _batches(training: Training, cursor: Cursor) -> Iterator[Batch]:
    order = hash((training.seed, cursor.phase, cursor.epoch)) % 2**31  # of integers alone: the same in every process
    return training.data.batches(
        "train", training.batch, shuffle_seed=order, device=training.device, augment=training.settings.augment
    )


def validate(training: Training) -> float:
    """Top-1 of the product on the validation split, in percent."""
    product = training.parts.product(training.plan)
    if training.reestimate:
        settle(training)
    scores = logits(product, training.data.batches("val", training.batch, device=training.device))
    return top1(scores, training.data.val.labels)


def settle(training: Training, batches: int = 20) -> None:
    """Re-estimate the product's batch-norm statistics with rounding on.

    Statistics gathered while weights still move, or inherited from the float network, are wrong for a low-bit one.
    """
    seen = training.data.batches("train", training.batch, shuffle_seed=training.seed, device=training.device)
    reestimate_batch_norm(
        training.parts.product(training.plan), (b.images for _, b in zip(range(batches), seen, strict=False))
    )


def _state(training: Training, optimizers: list[Any], cursor: Cursor) -> dict[str, Any]:
    return {
        "parts": training.parts.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "cursor": vars(cursor).copy(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(optimizers: list[Any], saved: Mapping[str, Any]) -> None:
    if len(saved["optimizers"]) != len(optimizers):
        raise RunError("the checkpoint belongs to another plan: it has another number of optimizer steps per batch")
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    torch.set_rng_state(saved["random"])
    if saved["random_cuda"]:
        torch.cuda.set_rng_state_all(saved["random_cuda"])
