"""Metrics: logits of a network, accuracy of every part of an ensemble."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.taps import LOGITS
from qkd.tasks.classification import top1

if TYPE_CHECKING:
    from qkd.data import Data
    from qkd.tasks.batch import Batch


@torch.no_grad()
def logits(network: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """The network's logits for all batches in evaluation mode, on the CPU. -> (images, classes)"""
    mode = network.training
    network.eval()
    result = torch.cat([network(batch.images).float().cpu() for batch in batches])
    network.train(mode)
    return result


def test_top1(product: nn.Module, data: Data, batch: int, device: torch.device | str) -> float:
    """Top-1 of a network on the test split, in percent."""
    return top1(logits(product, data.batches("test", batch, device=device)), data.test.labels)


@torch.no_grad()
def top1_of_all(ensemble: Ensemble, batches: Iterable[Batch]) -> dict[str, float]:
    """Top-1, in percent, of every part with logits when all run together, with the exchange and the heads."""
    ensemble.eval()
    right: dict[str, int] = {}
    count = 0
    for batch in batches:
        outputs = ensemble(batch.images, tuple(ensemble.networks))
        count += len(batch.labels)
        for tap, scores in outputs.items():
            if tap.stage == LOGITS and scores.dim() == 2:
                right[tap.part] = right.get(tap.part, 0) + int((scores.argmax(1) == batch.labels).sum())
    return {part: 100 * hits / count for part, hits in right.items()}
