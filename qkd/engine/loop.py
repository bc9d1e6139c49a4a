"""Loop: epochs and batches of one call of `train`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from qkd.distill.plan import Phase, Plan, Step, networks_needed
from qkd.engine.bit_schedule import apply_bit_schedule, at_final_bits, epochs_done
from qkd.engine.compile import try_compiled
from qkd.engine.diagnostics import diagnose_learners, non_finite_parameter
from qkd.engine.distributed import all_reduce, on_any_rank, on_first_rank
from qkd.engine.ema import Ema
from qkd.engine.events import BitsLowered, CompilationFailed, EpochEnded, QuantizersBroken, StepTaken
from qkd.engine.ewgs_delta import update_deltas
from qkd.engine.optimizer import carry_state, optimizer_for, spans
from qkd.engine.oscillations import OscillationWatch
from qkd.engine.reestimation import reestimate_networks, stopped_learning
from qkd.engine.signals import Interrupted, InterruptHandler
from qkd.engine.state import EpochProgress, TrainingState, restore, shuffle_seed, snapshot
from qkd.engine.step import (
    ADVICE,
    CHECK_EVERY,
    Action,
    check_finite,
    gradient_shares_of,
    position_text,
    scaler,
    take_step,
)
from qkd.engine.teacher_cache import build_teacher_cache
from qkd.engine.training_context import Training
from qkd.engine.validation import update_statistics, validate
from qkd.errors import TrainingError
from qkd.storage.checkpoints import BEST, LAST
from qkd.tasks.batch import Batch


def first_compared_phase(plan: Plan) -> int:
    """The phase from which on checkpoints of the product are compared: the last one in which it learns.

    What comes before prepares; a product that is good by chance while others learn is not the method's result.
    """
    learning = [index for index, phase in enumerate(plan.phases) if phase.parts & plan.product_parts]
    return learning[-1] if learning else len(plan.phases) - 1


class Loop:
    """One call of `train`: what stays the same over its epochs."""

    def __init__(
        self, training: Training, module: nn.Module, state: TrainingState, interruption: InterruptHandler
    ) -> None:
        self.training, self.module, self.state, self.interruption = training, module, state, interruption
        decay = training.settings.ema
        self.average = Ema(training.ensemble.product(training.plan), decay) if decay else None
        self.actions: list[Action] = []
        self.first_compared = first_compared_phase(training.plan)
        self.reported: set[str] = set()  # quantizers that a warning has named
        self.clock = (0.0, 0.0)

    def run_phase(self, phase: Phase, epochs: int, saved: Mapping[str, Any] | None, *, rehearse: bool) -> None:
        """All epochs of a phase that are left; ``saved``: a checkpoint inside it. ``rehearse``: stages are compiled."""
        training = self.training
        if saved is None:
            reestimate_networks(training, stopped_learning(training, self.state.phase))
        self.actions = self._actions(phase, epochs)  # which asks frozen teachers: their statistics are settled by now
        running = None
        if saved is None:
            training.ensemble.snapshot_regularizers()
        else:
            running = restore(training.fabric, saved, self._optimizers(), self.average)
        if rehearse:
            self._rehearse()
        while self.state.epoch < epochs and not training.exhausted(self.state):
            self.run_epoch(phase, epochs, running or EpochProgress())
            running = None

    def _actions(self, phase: Phase, epochs: int) -> list[Action]:
        training = self.training
        cache = build_teacher_cache(training, self.module, phase, epochs)
        sections = spans(training.plan, training.epochs, self.state.phase)
        before = [optimizer.optimizer for optimizer in self._optimizers()]
        found = []
        for step in phase.steps:
            optimizer = self._optimizer(step)
            carry_state(optimizer, before, training.plan.one_schedule)
            active = sorted(networks_needed(training.plan, step))
            found.append(Action(step, active, training.fabric.setup_optimizers(optimizer), cache, sections))
        return found

    def _optimizer(self, step: Step) -> torch.optim.Optimizer:
        training = self.training
        scaled = scaler(training) is not None
        return optimizer_for(step, training.ensemble, training.plan, training.settings, scaled=scaled)

    def _optimizers(self) -> list[Any]:
        return [action.optimizer for action in self.actions]

    def _rehearse(self) -> None:
        """Run every step once without effect, so that what cannot be compiled shows now, and stays eager."""
        training = self.training
        seed = shuffle_seed(training.seed, self.state.phase, self.state.epoch)
        batch = next(iter(training.images(seed, num_views=training.plan.num_views, skip=0)))
        why = try_compiled(
            training.ensemble,
            training.compile,
            lambda: [gradient_shares_of(training, action, batch, 0.0) for action in self.actions],
        )
        if why is not None:
            training.listen(CompilationFailed(why))

    def run_epoch(self, phase: Phase, epochs: int, running: EpochProgress) -> None:
        """One epoch, or what is left of it, its evaluation, its line of metrics and its checkpoint."""
        training, state = self.training, self.state
        self.clock = (time.perf_counter(), time.process_time())
        self._lower_bits()
        if not running.batches:
            first, progress = state.epoch == 0, state.epoch / epochs
            update_statistics(training, learning=phase.parts, first=first, progress=progress)
            update_deltas(training, phase, state)
        means = self._run_batches(phase, epochs, running)
        cut_short = training.exhausted(state) and running.batches < training.batches_per_epoch
        if cut_short:
            self._save(running)
        metrics = self._metrics(phase, epochs, running, means)
        if training.run is not None:
            on_first_rank(training.fabric, partial(training.run.append_metrics, metrics))
        if not cut_short:
            state.epoch += 1
            self._save(None)
        training.listen(EpochEnded(metrics))
        self._end_if_asked(kept=True)

    def _metrics(self, phase: Phase, epochs: int, running: EpochProgress, means: Mapping[str, float]) -> dict[str, Any]:
        """Evaluate behind an epoch, keep the ensemble if it is the best so far. -> the epoch's line of metrics"""
        training, state = self.training, self.state
        with self.average.applied() if self.average else contextlib.nullcontext():
            val = validate(training)
            self._count_time()
            self._save_best(val)
        progress = _progress(state.epoch, max(running.batches - 1, 0), training.batches_per_epoch, epochs)
        return {
            "phase": phase.name,
            "epoch": state.epoch + 1,
            "epochs": epochs,
            "steps": state.steps,
            **means,
            "val/top1": val,
            **training.ensemble.exchange.metrics(progress),
            "seconds": round(state.seconds, 3),
            **self._diagnose(epochs),
        }

    def _count_time(self) -> None:
        before, self.clock = self.clock, (time.perf_counter(), time.process_time())
        self.state.seconds += self.clock[0] - before[0]
        self.state.cpu_seconds += self.clock[1] - before[1]

    def _lower_bits(self) -> None:
        """Fewer bits from this epoch on, where the scheme of a network says so."""
        training, done = self.training, epochs_done(self.training, self.state)
        if apply_bit_schedule(training, done, keep_range=True):
            training.listen(BitsLowered(self.state.epoch))
            if self.average is not None:  # an average over other scales means nothing
                self.average = Ema(training.ensemble.product(training.plan), self.average.decay)

    def _diagnose(self, epochs: int) -> dict[str, list[str]]:
        """Quantizers that are broken, looked for ten times a phase; a warning names each once."""
        epoch = self.state.epoch + 1
        if (epoch - 1) % max(1, epochs // 10) and epoch < epochs:
            return {}
        lines = diagnose_learners(self.training)
        new = [line for line in lines if line.split(":")[0] not in self.reported]
        self.reported |= {line.split(":")[0] for line in lines}
        if new:
            self.training.listen(QuantizersBroken(new, epoch))
        return {"alarms": lines}

    def _run_batches(self, phase: Phase, epochs: int, running: EpochProgress) -> dict[str, float]:
        """All batches of one epoch. -> mean loss per term, gradient share per term, images per second."""
        training, state = self.training, self.state
        count, begun, start, images = training.batches_per_epoch, running.batches, time.perf_counter(), 0
        training.ensemble.set_learners(phase.steps[0].learners)
        seed = shuffle_seed(training.seed, state.phase, state.epoch)
        batches = training.images(seed, num_views=training.plan.num_views, skip=begun)
        watch = OscillationWatch(training, phase, epochs, state.epoch)
        for number, batch in enumerate(batches, begun):
            progress = _progress(state.epoch, number, count, epochs)
            self._run_batch(phase, epochs, running, number, batch, progress)
            images += len(batch.labels)
            state.steps += 1
            running.batches = number + 1
            watch.after(number)
            if number % CHECK_EVERY == 0 or number == count - 1:
                check_finite(training.fabric, running.losses, state.epoch, phase)
                training.listen(StepTaken(phase.name, progress, state.epoch, epochs))
            if training.exhausted(state):
                break
            self._pause(running, phase)
        self._check(running, phase)
        speed = training.fabric.world_size * images / (time.perf_counter() - start)
        return {**self._mean_losses(running), **running.shares, **watch.shares(), "images_per_second": round(speed, 1)}

    def _run_batch(
        self, phase: Phase, epochs: int, running: EpochProgress, number: int, batch: Batch, progress: float
    ) -> None:
        """Every step of the phase on one batch."""
        # gradient shares cost a backward pass per term: at most ten looks a phase are enough
        shares_due = number == 0 and self.state.epoch % -(-epochs // 10) == 0
        alone = len(self.actions) == 1
        for action in self.actions:
            if shares_due:
                running.shares |= gradient_shares_of(self.training, action, batch, progress)
            try:
                losses = take_step(self.training, self.module, action, batch, progress, epochs, alone=alone)
            except TrainingError as error:
                where = position_text(phase, self.state.epoch, number)
                raise TrainingError(f"{where}: {error}; {ADVICE}", key=error.key) from error
            for name, loss in losses.items():
                running.losses.setdefault(name, []).append(loss)
        if self.average is not None:
            self.average.update()
        self.training.ensemble.update_averages(self.state.steps + 1)

    def _mean_losses(self, running: EpochProgress) -> dict[str, float]:
        mean = {f"train/loss/{name}": torch.stack(seen).mean() for name, seen in running.losses.items()}
        means = all_reduce(self.training.fabric, torch.stack(list(mean.values()))).tolist()
        return dict(zip(mean, means, strict=True))

    def _pause(self, running: EpochProgress, phase: Phase) -> None:
        """Save the state inside an epoch if it is time to, or end if a signal asked for it."""
        ranks = self.training.fabric.world_size
        if ranks > 1 and running.batches % CHECK_EVERY:
            return  # to agree costs a message
        asked, due = on_any_rank(self.training.fabric, self.interruption.asked, self.interruption.due)
        if asked or due:
            self._check(running, phase)
            self._save(running)
        if asked:
            self.interruption.asked = True
            self._end_if_asked(kept=True)

    def _check(self, running: EpochProgress, phase: Phase) -> None:
        """Raises TrainingError where what is about to be saved is not finite: the last step may have spoilt it."""
        check_finite(self.training.fabric, running.losses, self.state.epoch, phase)
        if name := non_finite_parameter(self.training.ensemble):
            where = position_text(phase, self.state.epoch, running.batches - 1)
            raise TrainingError(
                f"{where}: {name} is not finite behind this step; {ADVICE}", key="training.parameter-not-finite"
            )

    def _end_if_asked(self, *, kept: bool) -> None:
        training = self.training
        if on_any_rank(training.fabric, self.interruption.asked)[0]:
            kept = kept and training.checkpoints is not None
            raise Interrupted(f"step {self.state.steps}" + (" is kept" if kept else ", nothing is kept"))

    def _save(self, running: EpochProgress | None) -> None:
        """A checkpoint to resume from, inside an epoch or behind a whole one."""
        training, checkpoints = self.training, self.training.checkpoints
        if checkpoints is None:
            return
        self._count_time()
        content = snapshot(
            training.fabric,
            training.ensemble,
            self.state,
            optimizers=self._optimizers(),
            running=running,
            average=self.average,
        )
        save = partial(checkpoints.save, LAST, content, steps=self.state.steps, whole=running is None)
        on_first_rank(training.fabric, save)
        if training.fabric.is_global_zero:
            checkpoints.prune()
        self.interruption.kept()

    def _save_best(self, val: float) -> None:
        """Save the ensemble behind this epoch, if no earlier epoch was better on the validation split."""
        training, state = self.training, self.state
        compared = state.phase >= self.first_compared and at_final_bits(training, epochs_done(training, state))
        if not compared or val < state.best:
            return
        state.best = val
        if training.checkpoints is not None and training.choose:
            content = {"parts": training.ensemble.state_dict(), "cursor": {**state.as_dict(), "epoch": state.epoch + 1}}
            on_first_rank(training.fabric, partial(training.checkpoints.save, BEST, content, steps=state.steps))


def _progress(epoch: int, batch: int, batches: int, epochs: int) -> float:
    """How much of a phase is done, 0..1."""
    return (epoch + batch / batches) / epochs
