"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8 in 10 classes; nothing is downloaded."""

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
    """scikit-learn's digits: 1078 / 360 / 359 training / validation / test images, stratified by class.

    The 8x8 originals are enlarged to ``size`` x ``size`` (bilinear). ``seed`` decides the split. Augmentation shifts images
    and never flips them: a mirrored 2 is no 2.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).long()
    images = enlarge(torch.from_numpy(bunch.images).float() / SOURCE_LEVELS, size).expand(-1, channels, -1, -1)
    parts = stratified_split(labels, (0.6, 0.2, 0.2), seed)
    train, val, test = (Split(images[ids].contiguous(), labels[ids]) for ids in parts)
    mean, std = channel_statistics(train.images)
    return Data(train, val, test, tuple(str(name) for name in bunch.target_names), mean, std, augment="crop")


def enlarge(images: Tensor, size: int) -> Tensor:
    """Resize grey images (N, 8, 8) in 0..1 to (N, 1, size, size) uint8, bilinear."""
    larger = F.interpolate(images[:, None], (size, size), mode="bilinear") if size != SOURCE_SIZE else images[:, None]
    return (larger * 255).round().to(torch.uint8)
