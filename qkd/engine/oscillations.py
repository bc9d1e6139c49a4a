"""Oscillations: the share of each network's low-bit weights that go back and forth between two levels, ten times a phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd.distill.plan import Phase
from qkd.quantizers import OscillationCounter, rounded_layers

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

WINDOW = 64  # steps at the end of an epoch in which turns are counted
MOST_BITS = 4  # levels of more bits lie so close that weights cross them all the time


class OscillationWatch:
    """Watches the last steps of one epoch; it rounds the weights once more in each of them, and changes nothing."""

    def __init__(self, training: Training, phase: Phase, epochs: int, epoch: int) -> None:
        self.due = epoch % max(1, epochs // 10) == 0
        self.first = max(0, training.batches_per_epoch - WINDOW)
        self.last = training.batches_per_epoch - 1
        self.training, self.phase = training, phase
        self.counters: dict[str, OscillationCounter] = {}
        self.complete = False

    def after(self, batch: int) -> None:
        """A batch of the epoch, counted from zero, is done."""
        if not self.due:
            return
        for counter in self.counters.values():
            counter.update()
        if batch == self.first:
            self.counters = self._counters()
        self.complete = batch == self.last

    def shares(self) -> dict[str, float]:
        """``oscillating/<network>``, 0..1; nothing for an epoch that began in the middle or was cut short."""
        counters = self.counters if self.complete else {}
        return {f"oscillating/{part}": round(counter.share(), 5) for part, counter in counters.items()}

    def _counters(self) -> dict[str, OscillationCounter]:
        networks = self.training.ensemble.networks
        learning = sorted(part for part in self.phase.parts if part in networks)
        layers = {part: rounded_layers(networks[part].network, MOST_BITS) for part in learning}
        return {part: OscillationCounter(found) for part, found in layers.items() if found}
