"""Splits of a data set in which every class has the same share."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_split(labels: Tensor, shares: tuple[float, ...], seed: int) -> list[Tensor]:
    """Indices of ``labels`` (N,), each once, in as many lists as there are shares; every class in that proportion."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels.unique():
        ids = (labels == label).nonzero().flatten()
        ids = ids[torch.randperm(len(ids), generator=generator)]
        for part, some in zip(parts, ids.tensor_split((bounds * len(ids)).round().long()), strict=True):
            part.append(some)
    return [torch.cat(part).sort().values for part in parts]
