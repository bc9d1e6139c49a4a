"""Train: phases, epochs, steps. The loop knows plans, and no method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qkd.engine.bit_schedule import apply_bit_schedule, restore_bits
from qkd.engine.compile import compile_stages, restore_eager, should_compile
from qkd.engine.distributed import synchronised
from qkd.engine.ema import Ema
from qkd.engine.events import CompilationStarted
from qkd.engine.loop import Loop
from qkd.engine.signals import InterruptHandler
from qkd.engine.state import TrainingState
from qkd.engine.training_context import Training
from qkd.errors import RunError
from qkd.quantizers import compile_cores
from qkd.storage.checkpoints import BEST


def train(
    training: Training, state: TrainingState | None = None, saved: Mapping[str, Any] | None = None
) -> TrainingState:
    """Run all phases; the ensemble then holds the checkpoint whose product was best on the validation split.

    ``saved``, a checkpoint: continue behind it, to the same bits as without a break. Raises Interrupted once a signal has
    asked for the end and the state is kept, TrainingError for numbers that are not finite.
    """
    state = restore_training(training, saved) if saved is not None else state or TrainingState()
    if not state.steps:
        training.ensemble.start_averages()
    training.ensemble.recomputed = training.recomputed
    module = training.fabric.setup_module(training.ensemble, move_to_device=True)
    try:
        with synchronised(training.fabric, training.ensemble):
            average = _phases(training, module, state, saved)
    finally:
        restore_eager(training.ensemble)
    _take_best(training, state, average)
    return state


def _take_best(training: Training, state: TrainingState, average: Ema | None) -> None:
    """Put what a run ends with into the ensemble: the best checkpoint, or else the averaged weights."""
    asked = training.choose and training.fabric.is_global_zero
    best = training.fabric.broadcast(training.checkpoints.load(BEST) if training.checkpoints and asked else None)
    if best is None and average is not None:
        average.take_over()
    apply_bit_schedule(training, sum(training.epochs), keep_range=True)  # where a run was cut short
    if best is not None:
        training.ensemble.load_state_dict(best["parts"])
        state.best = best["cursor"]["best"]


def _phases(training: Training, module: nn.Module, state: TrainingState, saved: Mapping[str, Any] | None) -> Ema | None:
    """-> the average of the product's weights, where the recipe asks for one"""
    with InterruptHandler(training.save_every) as interruption:
        compiled = should_compile(training, training.compile)
        if training.compile != "off" and training.device.type == "cpu":
            compile_cores(training.ensemble)  # half a second, for whatever is not compiled as a stage
        if compiled:
            training.listen(CompilationStarted(compile_stages(training.ensemble)))
        loop = Loop(training, module, state, interruption)
        for index, (phase, epochs) in enumerate(zip(training.plan.phases, training.epochs, strict=True)):
            if index < state.phase or training.exhausted(state):
                continue
            if index > state.phase:
                state.phase, state.epoch = index, 0
            loop.run_phase(phase, epochs, saved, rehearse=compiled)
            saved = None
        return loop.average


def is_finished(training: Training, state: TrainingState) -> bool:
    """Whether all phases are done."""
    return (state.phase, state.epoch) >= (len(training.epochs) - 1, training.epochs[-1])


def restore_training(training: Training, saved: Mapping[str, Any]) -> TrainingState:
    """Load a checkpoint into the ensemble and delete what was kept or logged after it. -> how far it was

    Raises RunError for a checkpoint with other tensors, such as one of an earlier version of qkd.
    """
    state = TrainingState(**saved["cursor"])
    _require_same_tensors(training.ensemble.state_dict(), saved["parts"])
    training.ensemble.load_state_dict(saved["parts"])
    whole = saved["running"] is None
    restore_bits(training, state, whole=whole)
    if training.fabric.is_global_zero:
        if training.checkpoints is not None:
            training.checkpoints.remove_after(state.steps, whole=whole)
        if training.run is not None:
            training.run.remove_metrics_after(state.steps, whole=whole)
    return state


def _require_same_tensors(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises RunError where a checkpoint has other names than the ensemble: that of an earlier version of qkd, for example."""
    missing, unknown = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or unknown:
        found = [f"it {verb} {names[0]}" for verb, names in (("lacks", missing), ("has an unknown", unknown)) if names]
        raise RunError(
            f"the checkpoint does not fit this version of qkd: {', '.join(found)} ({len(missing)} missing, {len(unknown)} "
            f"unknown); start a new run",
            key="run.checkpoint-does-not-fit",
        )
