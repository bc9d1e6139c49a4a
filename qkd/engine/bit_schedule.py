"""Bit schedule: the bits of each network as a pure function of the epochs that are done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from qkd.engine.state import TrainingState
from qkd.errors import PlanError
from qkd.quantizers import bit_stages, set_bit_stage

if TYPE_CHECKING:
    from qkd.engine.training_context import Training


def apply_bit_schedule(training: Training, done: int, *, keep_range: bool) -> bool:
    """Give all networks with a schedule the bits they have after ``done`` epochs of the run. -> whether any changed

    ``keep_range``: scales change so that the range stays; without it they stay as they are, as after loading a state.
    Raises PlanError where the run has fewer epochs than a network has steps in its schedule.
    """
    total = sum(training.epochs)
    changed = False
    for name, network, count in _scheduled(training):
        if total < count:
            raise PlanError(
                f"{name}: quantize.progressive: {count} numbers of bits need as many epochs, there are {total}",
                key="plan.fewer-epochs-than-bits",
            )
        changed |= set_bit_stage(network, min(done * count // total, count - 1), keep_range=keep_range)
    return changed


def at_final_bits(training: Training, done: int) -> bool:
    """Whether all networks have the bits they end with after ``done`` epochs."""
    total = sum(training.epochs)
    return all(done * count // total >= count - 1 for _, _, count in _scheduled(training))


def epochs_done(training: Training, state: TrainingState) -> int:
    """Whole epochs behind a point of the run, those of earlier phases included."""
    return sum(training.epochs[: state.phase]) + state.epoch


def restore_bits(training: Training, state: TrainingState, *, whole: bool) -> None:
    """Set the bits of a state just loaded: one saved behind a whole epoch still has the bits of that epoch."""
    apply_bit_schedule(training, max(0, epochs_done(training, state) - whole), keep_range=False)


def _scheduled(training: Training) -> Iterator[tuple[str, nn.Module, int]]:
    """The networks with a bit schedule that learn in every phase; the outputs of others may be cached.

    -> name, network, number of steps of its schedule
    """
    phases = training.plan.phases
    for name, network in training.ensemble.networks.items():
        if all(name in phase.parts for phase in phases) and (count := bit_stages(network)):
            yield name, network, count
