"""Lattice: features of one network on the grid that another one's quantizer spans."""

from __future__ import annotations

from torch import nn

from qkd.distill.heads import Head
from qkd.distill.module_map import ModuleMap
from qkd.distill.stages import Staged
from qkd.distill.taps import Outputs, Tap


class OnGrid(Head):
    """``source`` through the activation quantizer that ends the stage ``grid``: both then take the same few values.

    What is left of their distance is what the student can change, since half a step of rounding is no longer in it. A
    stage that ends in no quantizer (a float network) changes nothing. Source: the idea of SQuaT (2026), by its abstract.
    """

    def __init__(self, source: Tap, grid: Tap) -> None:
        super().__init__(
            f"{source.part}_{source.stage}_on_grid".replace(".", "_"), [source], nn.Identity(), about="rounded"
        )
        self.grid = grid

    def forward(self, outputs: Outputs, networks: ModuleMap[Staged]) -> Outputs:
        return {Tap(self.name): networks[self.grid.part].rounded(self.grid.stage, outputs[self.reads[0]])}
