"""Oscillation: how many weights go back and forth between two levels from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class OscillationCounter:
    """Counts, step by step, how often the integer of each weight turns back: moves against the direction it moved last.

    A weight oscillates if it turned back ``TURNS`` times or more since the counter was made. Source: Nagel et al., ICML 2022,
    section 3, eq. 3-4. Departure: turns are counted over a window, the paper takes a moving average of their frequency.
    """

    TURNS = 2

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.integers = [_integers(layer) for layer in self.layers]
        self.directions = [torch.zeros_like(each) for each in self.integers]
        self.turns = [torch.zeros_like(each) for each in self.integers]

    def update(self) -> None:
        """Compare with the step before."""
        for layer, before, direction, turns in zip(
            self.layers, self.integers, self.directions, self.turns, strict=True
        ):
            now = _integers(layer)
            moved = (now - before).sign_()
            turns += ((moved * direction) < 0).to(turns.dtype)
            direction.copy_(torch.where(moved == 0, direction, moved))
            before.copy_(now)

    def share(self) -> float:
        """The share of all weights that oscillate, 0..1."""
        found = sum(int((turns >= self.TURNS).sum()) for turns in self.turns)
        return found / sum(turns.numel() for turns in self.turns)


@torch.no_grad()
def _integers(layer: Any) -> Tensor:
    """The integers of a layer's weights, in their shape, as int16, which holds the difference of any two."""
    rounded, scale = layer.weight_quant.tensor_quant.quantize(layer.weight)
    integers: Tensor = (rounded / scale).round_().to(torch.int16)
    return integers
