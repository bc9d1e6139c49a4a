"""The checkpoints that networks start from: opened before anything is trained, so that one that does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from qkd.networks.start_weights import LoadedWeights, load_checkpoint

if TYPE_CHECKING:
    from qkd.recipe import NetworkEntry


def load_start(entry: NetworkEntry, network: nn.Module) -> LoadedWeights:
    """Load the checkpoint that an entry names into its float network. Raises NetworkError for one that does not fit."""
    return load_checkpoint(network, Path(entry.start_from), fresh_head=entry.start_head == "fresh")


@dataclass
class CheckpointStarts:
    """Loads the checkpoints that are there, and trains nothing. ``loaded``: what was taken from them, by network."""

    loaded: dict[str, LoadedWeights] = field(default_factory=dict)

    def __call__(self, part: str, entry: NetworkEntry, network: nn.Module) -> None:
        """Load the checkpoint of one network, if it starts from one; a file that is missing is the recipe's mistake."""
        if entry.is_checkpoint and Path(entry.start_from).is_file():
            self.loaded[part] = load_start(entry, network)
