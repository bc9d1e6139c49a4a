"""Stratified splits: every class has the same proportion in each part."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from qkd.data.batches import Split
from qkd.options import Bounds

ValidationShare = Annotated[float, Bounds(above=0, below=1)]
"""The share of each class of the training images that is held back for validation."""
OptionalValidationShare = Annotated[float, Bounds(at_least=0, below=1)]
"""As `ValidationShare`, where 0 holds nothing back."""


def stratified_split(labels: Tensor, shares: tuple[float, ...], seed: int) -> list[Tensor]:
    """Divide the indices of ``labels`` (N,) at random into parts, each with its share of every class.

    ``shares`` sum to 1. -> one sorted tensor of indices per share; each index is in exactly one
    """
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels.unique():
        ids = (labels == label).nonzero().flatten()
        ids = ids[torch.randperm(len(ids), generator=generator)]
        for part, some in zip(parts, ids.tensor_split((bounds * len(ids)).round().long()), strict=True):
            part.append(some)
    return [torch.cat(part).sort().values for part in parts]


def hold_back(split: Split, share: float) -> tuple[Split, Split]:
    """Divide a training split into training and validation; the same images are held back every time.

    ``share`` of every class goes to validation. -> training, validation
    """
    kept, held_back = stratified_split(split.labels, (1 - share, share), seed=0)
    return split.subset(kept), split.subset(held_back)
