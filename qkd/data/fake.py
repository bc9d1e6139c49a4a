"""Synthetic images for tests and benchmarks: a fixed pattern per class with noise added, learned in seconds."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.data.batches import Data, Split, channel_statistics
from qkd.options import Bounds, Count, Seed

CONTRAST, NOISE = 0.2, 0.15  # of the full range


def fake(
    *,
    size: Count = 32,
    channels: Count = 3,
    classes: Annotated[int, Bounds(at_least=2)] = 10,
    train: Count = 512,
    test: Count = 128,
    seed: Seed = 0,
) -> Data:
    """Synthetic images: ``train`` / ``test`` / ``test`` training / validation / test images, decided by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(classes, channels, 4, 4, generator=generator)
    patterns = F.interpolate(coarse, (size, size), mode="bilinear")
    train_split, val_split, test_split = (_draw(patterns, count, generator) for count in (train, test, test))
    mean, std = channel_statistics(train_split.images)
    return Data(train_split, val_split, test_split, tuple(f"class{i}" for i in range(classes)), mean, std)


def _draw(patterns: Tensor, count: int, generator: torch.Generator) -> Split:
    labels = torch.arange(count) % len(patterns)
    labels = labels[torch.randperm(count, generator=generator)]
    noise = torch.randn(count, *patterns.shape[1:], generator=generator)
    images = (0.5 + CONTRAST * patterns[labels] + NOISE * noise).clamp(0, 1)
    return Split((images * 255).round().to(torch.uint8), labels)
