"""scikit-learn's handwritten digits: 1797 images that come with the library, nothing to download."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.split import stratified_split
from qkd.options import Bounds, Seed

SOURCE_SIZE, SOURCE_LEVELS = 8, 16


def digits(
    *,
    size: Annotated[int, Bounds(at_least=8)] = 16,
    channels: Literal[1, 3] = 1,
    seed: Seed = 0,
) -> Data:
    """1078 images to train on, 360 to choose with, 359 to test with; each class has the same share of each.

    The 8x8 originals are enlarged to ``size`` (bilinear). ``seed`` decides the split. Shifted a little for training,
    never flipped: a mirrored 2 is no 2.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    labels = torch.from_numpy(raw.target).long()
    images = enlarge(torch.from_numpy(raw.images).float() / SOURCE_LEVELS, size).expand(-1, channels, -1, -1)
    parts = stratified_split(labels, (0.6, 0.2, 0.2), seed)
    train, val, test = (Split(images[ids].contiguous(), labels[ids]) for ids in parts)
    mean, std = channel_statistics(train.images)
    return Data(train, val, test, tuple(str(name) for name in raw.target_names), mean, std, augment="crop")


def enlarge(images: Tensor, size: int) -> Tensor:
    """Grey images (N, H, W) from 0 to 1 as (N, 1, size, size) uint8."""
    larger = F.interpolate(images[:, None], (size, size), mode="bilinear") if size != SOURCE_SIZE else images[:, None]
    return (larger * 255).round().to(torch.uint8)
