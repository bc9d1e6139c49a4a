"""Loop: epochs and batches of one call of `train`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd.distill.plan import Phase, Plan, networks_needed
from qkd.engine.bit_schedule import apply_bit_schedule, at_final_bits, epochs_done
from qkd.engine.compile import try_compiled
from qkd.engine.diagnostics import diagnose_learners, non_finite_parameter
from qkd.engine.distributed import all_reduce, on_any_rank, on_first_rank
from qkd.engine.ema import Ema
from qkd.engine.ewgs_delta import update_deltas
from qkd.engine.optimizer import optimizer_for
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
from qkd.engine.validation import update_statistics, validate
from qkd.errors import TrainingError
from qkd.storage.checkpoints import BEST, LAST

if TYPE_CHECKING:
    from qkd.data import Batch
    from qkd.engine.train import Training


def first_compared_phase(plan: Plan) -> int:
    """The phase from which on checkpoints of the product are compared: the last one in which it learns.

    What comes before prepares; a product that is good by chance while others learn is not the method's result.
    """
    heads = plan.deployed()
    product = {plan.product, *(head.name for head in heads), *(part for head in heads for part in head.parts)}
    learning = [
        index
        for index, phase in enumerate(plan.phases)
        if any(learner.partition(".")[0] in product for step in phase.steps for learner in step.learners)
    ]
    return learning[-1] if learning else len(plan.phases) - 1


class Loop:
    """One call of `train`: what stays the same over its epochs."""

    def __init__(
        self, training: Training, module: nn.Module, cursor: TrainingState, interruption: InterruptHandler
    ) -> None:
        self.training, self.module, self.cursor, self.interruption = training, module, cursor, interruption
        decay = training.settings.ema
        self.average = Ema(training.parts.product(training.plan), decay) if decay else None
        self.actions: list[Action] = []
        self.deciding = first_compared_phase(training.plan)
        self.heard: set[str] = set()
        self.clock = (0.0, 0.0)

    def phase(self, phase: Phase, epochs: int, saved: Mapping[str, Any] | None, *, rehearse: bool) -> None:
        training, cursor = self.training, self.cursor
        known = build_teacher_cache(training, self.module, phase, epochs)
        scaled = scaler(training) is not None
        self.actions = [
            Action(
                step, sorted(networks_needed(training.plan, step)), training.fabric.setup_optimizers(optimizer), known
            )
            for step in phase.steps
            for optimizer in [optimizer_for(step, training.parts, training.plan, training.settings, scaled=scaled)]
        ]
        optimizers = [action.optimizer for action in self.actions]
        if saved is None:
            training.parts.remember()
        running = restore(training.fabric, saved, optimizers, self.average) if saved is not None else None
        if rehearse:
            self.rehearse()
        while cursor.epoch < epochs and not training.exhausted(cursor):
            self.epoch(phase, epochs, running or EpochProgress())
            running = None

    def rehearse(self) -> None:
        """Every step once, without a trace, so that what cannot be compiled shows before anything depends on it."""
        training = self.training
        batch = next(iter(self.batches_of_epoch(0)))
        why = try_compiled(
            training.parts,
            training.compile,
            lambda: [gradient_shares_of(training, action, batch, 0.0) for action in self.actions],
        )
        if why is not None:
            training.listen("eager", {"why": why})

    def epoch(self, phase: Phase, epochs: int, running: EpochProgress) -> None:
        """One epoch, its evaluation, its line of metrics and its checkpoint."""
        training, cursor = self.training, self.cursor
        self.clock = (time.perf_counter(), time.process_time())
        self.lower()
        if not running.batches:
            update_statistics(training, first=cursor.epoch == 0)
            update_deltas(training, phase, cursor)
        measured = self.batches(phase, epochs, running)
        cut_short = training.exhausted(cursor) and running.batches < self.length
        if cut_short:
            self.keep(running)
        cursor.epoch += 1
        with self.average.applied() if self.average else contextlib.nullcontext():
            val = validate(training)
            self.tick()
            self.keep_best(val)
        values: dict[str, Any] = {
            "phase": phase.name,
            "epoch": cursor.epoch,
            "epochs": epochs,
            "steps": cursor.steps,
            **measured,
            "val/top1": val,
            **training.parts.exchange.metrics(),
            "seconds": round(cursor.seconds, 3),
            **self.alarms(epochs),
        }
        if training.run is not None:
            on_first_rank(training.fabric, partial(training.run.append_metrics, values))
        if cut_short:
            cursor.epoch -= 1  # it was evaluated, but it is not over
        else:
            self.keep(None)
        training.listen("epoch", values)
        self.end_if_asked(kept=True)

    def tick(self) -> None:
        """Count the time that went by."""
        before, self.clock = self.clock, (time.perf_counter(), time.process_time())
        self.cursor.seconds += self.clock[0] - before[0]
        self.cursor.cpu_seconds += self.clock[1] - before[1]

    def lower(self) -> None:
        """Fewer bits from this epoch on, where the scheme of a network says so."""
        training, done = self.training, epochs_done(self.training, self.cursor)
        if apply_bit_schedule(training, done, keep_range=True):
            training.listen("lowered", {"epoch": self.cursor.epoch})
            if self.average is not None:  # of other steps
                self.average = Ema(training.parts.product(training.plan), self.average.decay)

    def alarms(self, epochs: int) -> dict[str, list[str]]:
        """Quantizers that are broken: ten looks a phase; whoever listens hears of each once."""
        if (self.cursor.epoch - 1) % max(1, epochs // 10) and self.cursor.epoch < epochs:
            return {}
        lines = diagnose_learners(self.training)
        new = [line for line in lines if line.split(":")[0] not in self.heard]
        self.heard |= {line.split(":")[0] for line in lines}
        if new:
            self.training.listen("alarms", {"lines": new, "epoch": self.cursor.epoch})
        return {"alarms": lines}

    def batches(self, phase: Phase, epochs: int, running: EpochProgress) -> dict[str, float]:
        """All batches of one epoch. -> mean loss per term, gradient share per term, images per second."""
        training, cursor = self.training, self.cursor
        looks = cursor.epoch % max(1, epochs // 10) == 0  # shares cost a backward pass per term: ten looks are enough
        images, start, begun, count = 0, time.perf_counter(), running.batches, self.length
        training.parts.learn(phase.steps[0].learners)
        training.parts.at((cursor.epoch + max(begun - 1, 0) / count) / epochs)  # none may be left of a resumed epoch
        for number, batch in enumerate(self.batches_of_epoch(begun), begun):
            progress = (cursor.epoch + number / count) / epochs
            for action in self.actions:
                if looks and number == 0:
                    running.values |= gradient_shares_of(training, action, batch, progress)
                alone = len(self.actions) == 1
                try:
                    losses = take_step(training, self.module, action, batch, progress, epochs, alone=alone)
                except TrainingError as error:
                    raise TrainingError(f"{position_text(phase, cursor.epoch, number)}: {error}; {ADVICE}") from error
                for name, loss in losses.items():
                    running.losses.setdefault(name, []).append(loss)
            if self.average is not None:
                self.average.update()
            images += len(batch.labels)
            cursor.steps += 1
            running.batches = number + 1
            if number % CHECK_EVERY == 0 or number == count - 1:
                check_finite(training.fabric, running.losses, cursor.epoch, phase)
                values = {"phase": phase.name, "done": progress, "epoch": cursor.epoch, "epochs": epochs}
                training.listen("step", values)
            if training.exhausted(cursor):
                break
            self.pause(running, phase)
        self.check(running, phase)
        mean = {f"train/loss/{name}": torch.stack(seen).mean() for name, seen in running.losses.items()}
        means = all_reduce(training.fabric, torch.stack(list(mean.values()))).tolist()
        speed = training.fabric.world_size * images / (time.perf_counter() - start)
        return {**dict(zip(mean, means, strict=True)), **running.values, "images_per_second": round(speed, 1)}

    @property
    def length(self) -> int:
        """Batches of an epoch."""
        return self.training.data.num_train_batches(self.training.batch, self.training.fabric.world_size)

    def batches_of_epoch(self, begun: int) -> Iterator[Batch]:
        training, cursor = self.training, self.cursor
        seed = shuffle_seed(training.seed, cursor.phase, cursor.epoch)
        return training.images(seed, num_views=training.plan.sights, skip=begun)

    def pause(self, running: EpochProgress, phase: Phase) -> None:
        """Keep the state inside an epoch if it is time to, or end if someone asked for it."""
        ranks = self.training.fabric.world_size
        if ranks > 1 and running.batches % CHECK_EVERY:
            return  # to agree costs a message
        asked, due = on_any_rank(self.training.fabric, self.interruption.asked, self.interruption.due)
        if asked or due:
            self.check(running, phase)
            self.keep(running)
        if asked:
            self.interruption.asked = True
            self.end_if_asked(kept=True)

    def check(self, running: EpochProgress, phase: Phase) -> None:
        """Raises TrainingError where what is about to be kept is not finite: the last step may have spoilt it."""
        check_finite(self.training.fabric, running.losses, self.cursor.epoch, phase)
        if name := non_finite_parameter(self.training.parts):
            where = position_text(phase, self.cursor.epoch, running.batches - 1)
            raise TrainingError(f"{where}: {name} is not finite behind this step; {ADVICE}")

    def end_if_asked(self, *, kept: bool) -> None:
        training = self.training
        if on_any_rank(training.fabric, self.interruption.asked)[0]:
            kept = kept and training.checkpoints is not None
            raise Interrupted(f"step {self.cursor.steps}" + (" is kept" if kept else ", nothing is kept"))

    def keep(self, running: EpochProgress | None) -> None:
        """A checkpoint to go on from, inside an epoch or behind a whole one."""
        training, checkpoints = self.training, self.training.checkpoints
        optimizers = [action.optimizer for action in self.actions]
        if checkpoints is None:
            return
        self.tick()
        state = snapshot(
            training.fabric, training.parts, self.cursor, optimizers=optimizers, running=running, average=self.average
        )
        save = partial(checkpoints.save, LAST, state, steps=self.cursor.steps, whole=running is None)
        on_first_rank(training.fabric, save)
        if training.fabric.is_global_zero:
            checkpoints.prune()
        self.interruption.kept()

    def keep_best(self, val: float) -> None:
        """The parts as they are, if no earlier epoch was better on the validation split."""
        training, cursor = self.training, self.cursor
        if (
            cursor.phase < self.deciding
            or val < cursor.best
            or not at_final_bits(training, epochs_done(training, cursor) - 1)
        ):
            return
        cursor.best = val
        if training.checkpoints is not None and training.choose:
            state = {"parts": training.parts.state_dict(), "cursor": {**vars(cursor), "facts": dict(cursor.facts)}}
            on_first_rank(training.fabric, partial(training.checkpoints.save, BEST, state, steps=cursor.steps))
