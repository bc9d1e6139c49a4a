"""Lowering: which bits a run has reached, as a pure function of the epochs that are done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from qkd.distill.plan import epochs_per_phase
from qkd.engine.state import TrainingState
from qkd.errors import PlanError
from qkd.quantizers import bit_stages, set_bit_stage

if TYPE_CHECKING:
    from qkd.engine.train import Training


def apply_bit_schedule(training: Training, done: int, *, keep_range: bool) -> bool:
    """Put the quantizers of all learners where they are after so many epochs of the run. -> whether any changed

    With ``keep_range`` their range stays; without, the state is taken to be that of those bits already.

    Raises PlanError where the run has fewer epochs than a network has numbers of bits to go through.
    """
    total = sum(epochs_per_phase(training.plan, training.settings.epochs))
    changed = False
    for name, network, count in _learning(training):
        if total < count:
            raise PlanError(
                f"{name}: quantize.progressive: {count} numbers of bits need as many epochs, there are {total}"
            )
        changed |= set_bit_stage(network, min(done * count // total, count - 1), keep_range=keep_range)
    return changed


def at_final_bits(training: Training, done: int) -> bool:
    """Whether all learners have the bits they end with, so that what they reach counts."""
    total = sum(epochs_per_phase(training.plan, training.settings.epochs))
    return all(done * count // total >= count - 1 for _, _, count in _learning(training))


def epochs_done(training: Training, cursor: TrainingState) -> int:
    """Whole epochs behind a point of the run, those of earlier phases included."""
    return sum(epochs_per_phase(training.plan, training.settings.epochs)[: cursor.phase]) + cursor.epoch


def restore_bits(training: Training, cursor: TrainingState, *, whole: bool) -> None:
    """Take the state just loaded for what it is: kept behind a whole epoch, it has that epoch's bits still."""
    apply_bit_schedule(training, max(0, epochs_done(training, cursor) - whole), keep_range=False)


def _learning(training: Training) -> Iterator[tuple[str, nn.Module, int]]:
    """The networks with a ladder that learn in every phase: what a frozen one gives is computed once and kept."""
    phases = [
        {who.partition(".")[0] for step in phase.steps for who in step.learners} for phase in training.plan.phases
    ]
    for name, network in training.parts.networks.items():
        if all(name in learners for learners in phases) and (count := bit_stages(network)):
            yield name, network, count
