"""Metrics: logits of a network, and the classes that every part of an ensemble gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.taps import LOGITS
from qkd.tasks.classification import top1

if TYPE_CHECKING:
    from qkd.data import Data
    from qkd.tasks.batch import Batch

MEAN = "mean of teachers"


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
def classes_of_all(ensemble: Ensemble, batches: Iterable[Batch], mean_of: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The class (images,) that every part with logits gives each image, when all run together with exchange and heads.

    ``mean_of``: parts whose mean of logits is added under the name ``MEAN``.
    """
    ensemble.eval()
    chosen: dict[str, list[Tensor]] = {}
    for batch in batches:
        outputs = ensemble(batch.images, tuple(ensemble.networks))
        found = {tap.part: scores for tap, scores in outputs.items() if tap.stage == LOGITS and scores.dim() == 2}
        if mean_of:
            found[MEAN] = torch.stack([found[part].float() for part in mean_of]).mean(0)
        for part, scores in found.items():
            chosen.setdefault(part, []).append(scores.argmax(1).cpu())
    return {part: torch.cat(classes).numpy() for part, classes in chosen.items()}
