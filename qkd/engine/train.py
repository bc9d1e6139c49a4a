"""Train: phases, epochs, steps. The loop knows plans and never a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd.assembly.ensemble import Ensemble
from qkd.data.augment import ExtraAugmentations
from qkd.distill.plan import Plan, epochs_per_phase
from qkd.engine.bit_schedule import apply_bit_schedule, restore_bits
from qkd.engine.compile import compile_stages, restore_eager, should_compile
from qkd.engine.device import Compile
from qkd.engine.distributed import desynchronise, shard, synchronise
from qkd.engine.ema import Ema
from qkd.engine.loop import Loop
from qkd.engine.signals import InterruptHandler
from qkd.engine.state import TrainingState
from qkd.errors import PlanError, nearest
from qkd.quantizers import compile_cores
from qkd.storage.checkpoints import BEST, Checkpoints
from qkd.storage.run import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.data import Batch, Data
    from qkd.recipe import Train

Listener = Callable[[str, Mapping[str, Any]], None]  # ("epoch", values), ("step", values)
SAVE_EVERY = 600.0  # seconds between checkpoints inside an epoch


@dataclass(frozen=True)
class Training:
    """Everything the loop needs, put together once. Without ``checkpoints`` nothing is kept but what the parts end with."""

    parts: Ensemble
    plan: Plan
    data: Data
    settings: Train
    batch: int
    seed: int
    fabric: Fabric
    run: Run | None = None
    checkpoints: Checkpoints | None = None
    choose: bool = True  # end with the best checkpoint on the validation split rather than with the last
    reestimate: bool = False
    max_steps: int | None = None
    save_every: float = SAVE_EVERY
    compile: Compile = "off"
    listen: Listener = field(default=lambda event, values: None)

    @property
    def changes(self) -> ExtraAugmentations:
        """What is done to training images beside what their data set says."""
        settings = self.settings
        return ExtraAugmentations(settings.cutout, settings.randaugment, settings.mixup, settings.cutmix)

    def images(self, seed: int, **more: Any) -> Iterator[Batch]:
        """This rank's part of the training split once through, in the order of a seed, changed as networks learn it."""
        return self.data.train_batches(
            self.batch,
            seed=seed,
            device=self.device,
            augment=self.settings.augment,
            extra=self.changes,
            shard=shard(self.fabric),
            **more,
        )

    @property
    def recomputed(self) -> frozenset[str]:
        """The networks that compute their activations again instead of keeping them. Raises PlanError for others."""
        wanted, there = self.settings.recompute, self.parts.networks
        if isinstance(wanted, bool):
            return frozenset(there if wanted else ())
        for name in wanted:
            if name not in there:
                raise PlanError(
                    f"train.recompute: no network {name!r}{nearest(name, there)}; there are {', '.join(there)}"
                )
        return frozenset(wanted)

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def exhausted(self, cursor: TrainingState) -> bool:
        return self.max_steps is not None and cursor.steps >= self.max_steps


def train(
    training: Training, cursor: TrainingState | None = None, saved: Mapping[str, Any] | None = None
) -> TrainingState:
    """Run all phases; the parts then hold the checkpoint of the product that was best on the validation split.

    With ``saved``, a state that was kept, it goes on behind it, bit-identical to a run that was never interrupted.
    Raises Interrupted once a signal has asked for the end and the state is kept.
    """
    cursor = restore_training(training, saved) if saved is not None else cursor or TrainingState()
    training.parts.recomputed = training.recomputed
    module = training.fabric.setup_module(training.parts, move_to_device=True)
    synchronise(training.fabric, training.parts)
    try:
        average = _phases(training, module, cursor, saved)
    finally:
        desynchronise(training.parts)
        restore_eager(training.parts)
    asked = training.choose and training.fabric.is_global_zero
    best = training.fabric.broadcast(training.checkpoints.load(BEST) if training.checkpoints and asked else None)
    if best is None and average is not None:
        average.take_over()
    apply_bit_schedule(training, sum(_rounds(training)), keep_range=True)  # where a run was cut short
    if best is not None:
        training.parts.load_state_dict(best["parts"])
        cursor.best = best["cursor"]["best"]
    return cursor


def _phases(
    training: Training, module: nn.Module, cursor: TrainingState, saved: Mapping[str, Any] | None
) -> Ema | None:
    """-> the average of the product's weights, where the recipe asks for one"""
    with InterruptHandler(training.save_every) as interruption:
        compiled = should_compile(training, training.compile)
        if training.compile != "off" and training.device.type == "cpu":
            compile_cores(training.parts)  # half a second, for whatever is not compiled as a stage
        if compiled:
            training.listen("compiling", {"stages": compile_stages(training.parts)})
        loop = Loop(training, module, cursor, interruption)
        for index, (phase, epochs) in enumerate(zip(training.plan.phases, _rounds(training), strict=True)):
            if index < cursor.phase or training.exhausted(cursor):
                continue
            if index > cursor.phase:
                cursor.phase, cursor.epoch = index, 0
            loop.phase(phase, epochs, saved, rehearse=compiled)
            saved = None
        return loop.average


def _rounds(training: Training) -> tuple[int, ...]:
    return epochs_per_phase(training.plan, training.settings.epochs)


def is_finished(training: Training, cursor: TrainingState) -> bool:
    """Whether all phases are done."""
    epochs = _rounds(training)
    return (cursor.phase, cursor.epoch) >= (len(epochs) - 1, epochs[-1])


def restore_training(training: Training, saved: Mapping[str, Any]) -> TrainingState:
    """The parts as they were kept; what was kept or logged behind that point is dropped. -> where it was"""
    cursor = TrainingState(**saved["cursor"])
    training.parts.load_state_dict(saved["parts"])
    whole = saved["running"] is None
    restore_bits(training, cursor, whole=whole)
    if training.fabric.is_global_zero:
        if training.checkpoints is not None:
            training.checkpoints.remove_after(cursor.steps, whole=whole)
        if training.run is not None:
            training.run.remove_metrics_after(cursor.steps, whole=whole)
    return cursor
