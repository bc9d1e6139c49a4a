"""Augment: how training images are changed, a batch at a time on their device. What is drawn depends on a seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "crop", "crop+flip", "resized+flip"]
CUT = 5  # numbers that say where an image is cut out of a larger one: area, ratio, left, top, mirrored


@dataclass(frozen=True)
class ExtraAugmentations:
    """What is done to training images beside what their data set says of itself; None leaves it out.

    ``cutout``: the side in pixels of a square painted over with the mean colour (DeVries & Taylor 2017). ``randaugment``:
    two of torchvision's fourteen operations in that magnitude, 0 to 30 (Cubuk et al. 2020). ``mixup`` and ``cutmix``: the
    alpha of the Beta distribution that says how much of an image is kept beside another one of its batch (Zhang et al.
    2018, Yun et al. 2019); with both, each image has one of them by a coin.
    """

    cutout: int | None = None
    randaugment: int | None = None
    mixup: float | None = None
    cutmix: float | None = None

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of two classes."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def alters(self) -> bool:
        """Whether images are changed one by one."""
        return self.cutout is not None or self.randaugment is not None


NO_AUGMENTATIONS = ExtraAugmentations()


class View(NamedTuple):
    """What happens to each image of a split in one view, a row per image; None where nothing does."""

    moves: Tensor | None = None  # (N, 3): shift down, shift right, whether it is flipped
    cuts: Tensor | None = None  # (N, 5) of 0..1: where it is cut out of its file
    holes: Tensor | None = None  # (N, 2) of 0..1: the middle of what is painted over
    seeds: Tensor | None = None  # (N,): of RandAugment

    def of(self, ids: Tensor) -> View:
        """The rows of some images."""
        return View(*(None if rows is None else rows[ids] for rows in self))


class Mixing(NamedTuple):
    """With how much of another one each image is mixed: share kept, whether as a box, the box's middle. (N,), (N,), (N, 2)"""

    share: Tensor
    boxed: Tensor
    middle: Tensor

    def of(self, ids: Tensor) -> Mixing:
        return Mixing(*(rows[ids] for rows in self))


def view(
    augment: Augmentation, changes: ExtraAugmentations, count: int, padding: int, generator: torch.Generator
) -> View:
    """One view of a split of ``count`` images, drawn."""
    moves = cuts = holes = seeds = None
    if augment in ("crop", "crop+flip"):
        shifts = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2, (count, 1), generator=generator)
        moves = torch.cat([shifts, flips * (augment == "crop+flip")], dim=1)
    if augment == "resized+flip":
        cuts = torch.rand(count, CUT, generator=generator)
    if changes.cutout is not None:
        holes = torch.rand(count, 2, generator=generator)
    if changes.randaugment is not None:
        seeds = torch.randint(2**31, (count,), generator=generator)
    return View(moves, cuts, holes, seeds)


def mixing(changes: ExtraAugmentations, count: int, generator: torch.Generator) -> Mixing:
    """How each image of a split is mixed, drawn."""
    draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    boxed = torch.from_numpy(draw.random(count)) < (0.5 if changes.mixup is not None else 1.0)
    boxed &= changes.cutmix is not None
    shares = [torch.from_numpy(draw.beta(a, a, count)) for a in (changes.mixup or 1.0, changes.cutmix or 1.0)]
    middle = torch.from_numpy(draw.random((count, 2)))
    return Mixing(torch.where(boxed, shares[1], shares[0]).float(), boxed, middle.float())


def transformed(images: Tensor, drawn: View, changes: ExtraAugmentations, padding: int) -> Tensor:
    """The uint8 images (batch, C, H, W) of one view, shifted, flipped and changed by RandAugment as drawn."""
    if drawn.moves is not None:
        images = crop_and_flip(images, drawn.moves.to(images.device), padding=padding)
    if drawn.seeds is not None and changes.randaugment is not None:
        images = randaugmented(images, drawn.seeds, changes.randaugment)
    return images


def crop_and_flip(images: Tensor, moves: Tensor, *, padding: int) -> Tensor:
    """The images (batch, C, H, W), each padded with black, cut out again at its own place and flipped as told.

    ``moves`` (batch, 3) int64 holds per image the row and the column of the cut, 0 to 2 ``padding``, and 1 to flip it
    left to right.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    at = images.device
    down, right, mirrored = moves.unbind(1)
    columns = torch.arange(width, device=at).expand(batch, width)
    columns = torch.where(mirrored.bool()[:, None], width - 1 - columns, columns)
    columns = (columns + right[:, None])[:, None, None, :]
    rows = (torch.arange(height, device=at) + down[:, None])[:, None, :, None]
    channel = torch.arange(channels, device=at)[None, :, None, None]
    return padded[torch.arange(batch, device=at)[:, None, None, None], channel, rows, columns]


def randaugmented(images: Tensor, seeds: Tensor, magnitude: int) -> Tensor:
    """Each of the uint8 images changed by torchvision's RandAugment; the global random state stays as it is."""
    from torchvision.transforms import v2

    change: Any = v2.RandAugment(magnitude=magnitude)
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)


def cut_out(images: Tensor, holes: Tensor, side: int) -> Tensor:
    """The normalised images (batch, C, H, W), each with a square of zeros, their mean colour, that may reach over an edge."""
    return images * ~_boxes(holes.to(images.device), torch.full_like(holes[:, 0], side).to(images.device), images.shape)


def mixed(images: Sequence[Tensor], labels: Tensor, drawn: Mixing, classes: int) -> tuple[list[Tensor], Tensor]:
    """Every image of each view (batch, C, H, W) mixed with its mirror in the order of the batch; and the shares of labels.

    -> the views, and what each image is to how much, (batch, classes) float32
    """
    share, boxed, middle = (each.to(images[0].device) for each in drawn)
    height, width = images[0].shape[2:]
    box = _boxes(middle, (1 - share).sqrt() * height, images[0].shape, (1 - share).sqrt() * width)
    kept = torch.where(boxed[:, None, None, None], (~box).float(), share[:, None, None, None])
    part = kept.expand(-1, 1, height, width).mean((1, 2, 3))[:, None]
    right = F.one_hot(labels, classes).float()
    views = [each * kept + each.flip(0) * (1 - kept) for each in images]
    return views, right * part + right.flip(0) * (1 - part)


def _boxes(middle: Tensor, height: Tensor, shape: Sequence[int], width: Tensor | None = None) -> Tensor:
    """Where each image's box is, of that height and width in pixels around its middle (batch, 2) of 0..1. -> (batch, 1, H, W)"""
    rows = torch.arange(shape[2], device=middle.device) + 0.5
    columns = torch.arange(shape[3], device=middle.device) + 0.5
    inside = (rows - middle[:, :1] * shape[2]).abs() < height[:, None] / 2
    beside = (columns - middle[:, 1:] * shape[3]).abs() < (height if width is None else width)[:, None] / 2
    return (inside[:, :, None] & beside[:, None, :])[:, None]
