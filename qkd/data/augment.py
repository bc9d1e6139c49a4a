"""Augmentation of training images, a batch at a time on the batch's device.

The random parameters of a whole split are drawn first, from one generator (`draw_view`, `draw_mixing`); batches then look up
the rows of their images. So what happens to an image depends on the seed alone and not on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "crop", "crop+flip", "resized+flip"]
"""The augmentation a data set prescribes for itself. Crops are random shifts by the padding, flips are horizontal."""
CROP_NUMBERS = 5  # of a random resized crop: area, aspect ratio, left, top, flip


@dataclass(frozen=True)
class ExtraAugmentations:
    """Augmentations a recipe adds to those of the data set; None switches one off.

    ``cutout``: the side in pixels of a square filled with the mean colour (DeVries & Taylor 2017). ``randaugment``:
    the magnitude, 0 to 30, of two of torchvision's fourteen operations (Cubuk et al. 2020). ``mixup`` and ``cutmix``: the
    alpha of the Beta distribution from which the share of an image is drawn that is kept when it is mixed with another
    one of its batch (Zhang et al. 2018, Yun et al. 2019); with both, each image gets one of them with probability 1/2.
    """

    cutout: int | None = None
    randaugment: int | None = None
    mixup: float | None = None
    cutmix: float | None = None

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, so that labels become class shares."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def changes_single_images(self) -> bool:
        """Whether cutout or RandAugment is on, which change each image by itself."""
        return self.cutout is not None or self.randaugment is not None


NO_AUGMENTATIONS = ExtraAugmentations()


class ViewParameters(NamedTuple):
    """The random parameters of one view of a split, a row per image; None for an augmentation that is off."""

    moves: Tensor | None = None  # (N, 3) int64: rows down, columns right (0 to 2 x padding), 1 to flip
    crops: Tensor | None = None  # (N, 5) in 0..1: the arguments of `qkd.data.decode.random_crop`
    holes: Tensor | None = None  # (N, 2) in 0..1: the centre of the cutout square
    seeds: Tensor | None = None  # (N,) int64: of RandAugment

    def of(self, ids: Tensor) -> ViewParameters:
        """The rows of the images with these ids (batch,)."""
        return ViewParameters(*(None if rows is None else rows[ids] for rows in self))


class MixParameters(NamedTuple):
    """The random parameters of mixup and cutmix for a split, a row per image."""

    share: Tensor  # (N,) in 0..1: the share of the image that is kept
    boxed: Tensor  # (N,) bool: cutmix (a box of the other image is pasted) instead of mixup
    centre: Tensor  # (N, 2) in 0..1: the centre of the box

    def of(self, ids: Tensor) -> MixParameters:
        """The rows of the images with these ids (batch,)."""
        return MixParameters(*(rows[ids] for rows in self))


def draw_view(
    augment: Augmentation, extra: ExtraAugmentations, count: int, padding: int, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of one view of a split of ``count`` images."""
    moves = crops = holes = seeds = None
    if augment in ("crop", "crop+flip"):
        shifts = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2, (count, 1), generator=generator)
        moves = torch.cat([shifts, flips * (augment == "crop+flip")], dim=1)
    if augment == "resized+flip":
        crops = torch.rand(count, CROP_NUMBERS, generator=generator)
    if extra.cutout is not None:
        holes = torch.rand(count, 2, generator=generator)
    if extra.randaugment is not None:
        seeds = torch.randint(2**31, (count,), generator=generator)
    return ViewParameters(moves, crops, holes, seeds)


def draw_mixing(extra: ExtraAugmentations, count: int, generator: torch.Generator) -> MixParameters:
    """Draw the parameters of mixup and cutmix for a split of ``count`` images."""
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    boxed = torch.from_numpy(rng.random(count)) < (0.5 if extra.mixup is not None else 1.0)
    boxed &= extra.cutmix is not None
    shares = [torch.from_numpy(rng.beta(a, a, count)) for a in (extra.mixup or 1.0, extra.cutmix or 1.0)]
    centre = torch.from_numpy(rng.random((count, 2)))
    return MixParameters(torch.where(boxed, shares[1], shares[0]).float(), boxed, centre.float())


def augment_uint8(images: Tensor, drawn: ViewParameters, extra: ExtraAugmentations, padding: int) -> Tensor:
    """Apply the augmentations of one view that work on uint8 images (batch, C, H, W): shift, flip, RandAugment."""
    if drawn.moves is not None:
        images = crop_and_flip(images, drawn.moves.to(images.device), padding=padding)
    if drawn.seeds is not None and extra.randaugment is not None:
        images = rand_augment(images, drawn.seeds, extra.randaugment)
    return images


def crop_and_flip(images: Tensor, moves: Tensor, *, padding: int) -> Tensor:
    """Pad images (batch, C, H, W) with black by ``padding`` pixels and crop each to its old size at its own offset.

    ``moves`` (batch, 3) int64 holds for each image the row and the column of the crop, 0 to 2 x ``padding``, and 1 to flip
    it left to right.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    device = images.device
    down, right, flip = moves.unbind(1)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flip.bool()[:, None], width - 1 - columns, columns)
    columns = (columns + right[:, None])[:, None, None, :]
    rows = (torch.arange(height, device=device) + down[:, None])[:, None, :, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[torch.arange(batch, device=device)[:, None, None, None], channel, rows, columns]


def rand_augment(images: Tensor, seeds: Tensor, magnitude: int) -> Tensor:
    """Apply torchvision's RandAugment to uint8 images (batch, C, H, W), each with its own seed.

    The global random state is restored afterwards.
    """
    from torchvision.transforms import v2

    transform: Any = v2.RandAugment(magnitude=magnitude)
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(transform(image))
    return torch.stack(changed)


def cut_out(images: Tensor, holes: Tensor, side: int) -> Tensor:
    """Set a square of ``side`` pixels of each normalised image (batch, C, H, W) to zero, the mean colour.

    ``holes`` (batch, 2) in 0..1 are the centres of the squares, which may reach over an edge.
    """
    return images * ~_boxes(holes.to(images.device), torch.full_like(holes[:, 0], side).to(images.device), images.shape)


def mix(images: Sequence[Tensor], labels: Tensor, drawn: MixParameters, classes: int) -> tuple[list[Tensor], Tensor]:
    """Mix image i of each view (batch, C, H, W) with image batch - 1 - i, by mixup or cutmix.

    -> the views, and the share of each class in each image, (batch, classes) float32
    """
    share, boxed, centre = (each.to(images[0].device) for each in drawn)
    height, width = images[0].shape[2:]
    box = _boxes(centre, (1 - share).sqrt() * height, images[0].shape, (1 - share).sqrt() * width)
    kept = torch.where(boxed[:, None, None, None], (~box).float(), share[:, None, None, None])
    kept_share = kept.expand(-1, 1, height, width).mean((1, 2, 3))[:, None]
    one_hot = F.one_hot(labels, classes).float()
    views = [each * kept + each.flip(0) * (1 - kept) for each in images]
    return views, one_hot * kept_share + one_hot.flip(0) * (1 - kept_share)


def _boxes(centre: Tensor, height: Tensor, shape: Sequence[int], width: Tensor | None = None) -> Tensor:
    """Masks (batch, 1, H, W) of boxes around ``centre`` (batch, 2) in 0..1; height and width (batch,) are in pixels.

    ``shape`` is that of the images, (batch, C, H, W). Without ``width`` the boxes are squares.
    """
    rows = torch.arange(shape[2], device=centre.device) + 0.5
    columns = torch.arange(shape[3], device=centre.device) + 0.5
    inside = (rows - centre[:, :1] * shape[2]).abs() < height[:, None] / 2
    beside = (columns - centre[:, 1:] * shape[3]).abs() < (height if width is None else width)[:, None] / 2
    return (inside[:, :, None] & beside[:, None, :])[:, None]
