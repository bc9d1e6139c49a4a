"""Train: phases, epochs, steps. The loop knows plans and never a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd.assembly.ensemble import Parts
from qkd.data.augment import Changes
from qkd.distill.plan import Plan, rounds
from qkd.engine.bit_schedule import as_saved, lowered
from qkd.engine.compile import compile_stages, undo, wanted
from qkd.engine.device import Compile
from qkd.engine.distributed import align, release, shard
from qkd.engine.ema import Average
from qkd.engine.loop import Loop
from qkd.engine.signals import Interruption
from qkd.engine.state import Cursor
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

    parts: Parts
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
    def changes(self) -> Changes:
        """What is done to training images beside what their data set says."""
        settings = self.settings
        return Changes(settings.cutout, settings.randaugment, settings.mixup, settings.cutmix)

    def images(self, seed: int, **more: Any) -> Iterator[Batch]:
        """This rank's part of the training split once through, in the order of a seed, changed as networks learn it."""
        return self.data.batches(
            "train",
            self.batch,
            shuffle_seed=seed,
            device=self.device,
            augment=self.settings.augment,
            changes=self.changes,
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

    def exhausted(self, cursor: Cursor) -> bool:
        return self.max_steps is not None and cursor.steps >= self.max_steps


def train(training: Training, cursor: Cursor | None = None, saved: Mapping[str, Any] | None = None) -> Cursor:
    """Run all phases; the parts then hold the checkpoint of the product that was best on the validation split.

    With ``saved``, a state that was kept, it goes on behind it, bit-identical to a run that was never interrupted.
    Raises Interrupted once a signal has asked for the end and the state is kept.
    """
    cursor = resumed(training, saved) if saved is not None else cursor or Cursor()
    training.parts.recomputed = training.recomputed
    module = training.fabric.setup_module(training.parts, move_to_device=True)
    align(training.fabric, training.parts)
    try:
        average = _phases(training, module, cursor, saved)
    finally:
        release(training.parts)
        undo(training.parts)
    asked = training.choose and training.fabric.is_global_zero
    best = training.fabric.broadcast(training.checkpoints.load(BEST) if training.checkpoints and asked else None)
    if best is None and average is not None:
        average.take_over()
    lowered(training, sum(_rounds(training)), keep_range=True)  # where a run was cut short
    if best is not None:
        training.parts.load_state_dict(best["parts"])
        cursor.best = best["cursor"]["best"]
    return cursor


def _phases(training: Training, module: nn.Module, cursor: Cursor, saved: Mapping[str, Any] | None) -> Average | None:
    """-> the average of the product's weights, where the recipe asks for one"""
    with Interruption(training.save_every) as interruption:
        compiled = wanted(training, training.compile)
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
    return rounds(training.plan, training.settings.epochs)


def finished(training: Training, cursor: Cursor) -> bool:
    """Whether all phases are done."""
    epochs = _rounds(training)
    return (cursor.phase, cursor.epoch) >= (len(epochs) - 1, epochs[-1])


def resumed(training: Training, saved: Mapping[str, Any]) -> Cursor:
    """The parts as they were kept; what was kept or logged behind that point is dropped. -> where it was"""
    cursor = Cursor(**saved["cursor"])
    training.parts.load_state_dict(saved["parts"])
    whole = saved["running"] is None
    as_saved(training, cursor, whole=whole)
    if training.fabric.is_global_zero:
        if training.checkpoints is not None:
            training.checkpoints.forget_after(cursor.steps, whole=whole)
        if training.run is not None:
            training.run.forget_after(cursor.steps, whole=whole)
    return cursor
