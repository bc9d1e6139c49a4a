"""Small data sets, images in files, and the comparison of lists of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qkd.data import Batch, Data, Split
from qkd.data.batches import channel_statistics


def ramp(count: int = 10, size: int = 16) -> Data:
    """Random RGB images of two classes, the same every time."""
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split(images, torch.arange(count) % 2)
    return Data(split, split, split, ("even", "odd"), *channel_statistics(images), "crop+flip")


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
        return (batch.images, batch.labels, batch.ids, *batch.others)

    pairs = [zip(tensors(a), tensors(b), strict=True) for a, b in zip(ours, theirs, strict=True)]
    return all(torch.equal(a, b) for pair in pairs for a, b in pair)


MOVED = """
from dataclasses import replace
from qkd.data.fake import fake

def moved():
    return replace(fake(size=16, classes=4, train=64, test=32), augment="crop")
"""


def noise(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
