"""A data set in memory, and the batches it gives: order and augmentation depend on a seed alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "crop", "crop+flip"]
SplitName = Literal["train", "val", "test"]


class Batch(NamedTuple):
    """Images (batch, C, H, W) float32, normalised, channels last; labels (batch,) and ids (batch,) int64.

    An id is the image's place in its split. ``others`` are further views of the same images, each augmented in a way of
    its own.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    others: tuple[Tensor, ...] = ()

    @property
    def views(self) -> Tensor | tuple[Tensor, ...]:
        """What networks are shown: the images, or all views of them, the first of which they are."""
        return (self.images, *self.others) if self.others else self.images

    def split(self, size: int) -> list[Batch]:
        """Pieces of so many images, the last one perhaps smaller."""
        parts = zip(*(tensor.split(size) for tensor in (self.images, self.labels, self.ids, *self.others)), strict=True)
        return [Batch(images, labels, ids, tuple(others)) for images, labels, ids, *others in parts]


class Split(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """Images in three splits, the names of their classes, and how they are brought to a network.

    ``mean`` and ``std`` hold one number per channel, of the full range (0 to 1), measured on the
    training split.
    """

    train: Split
    val: Split
    test: Split
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augmentation = "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        return len(self.labels)

    def affine(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """``scale`` and ``shift``, (C, 1, 1) float32 each: a normalised image is ``uint8 image * scale + shift``."""
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.mean, self.std))
        return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)

    def normalize(self, images: Tensor) -> Tensor:
        """The uint8 images (..., C, H, W) as float32 of about zero mean and unit variance, on their own device."""
        scale, shift = self.affine(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        device: torch.device | str = "cpu",
        augment: bool = False,
        views: int = 1,
        shard: tuple[int, int] = (0, 1),
        skip: int = 0,
    ) -> Iterator[Batch]:
        """The split once through: in order, or shuffled (and augmented) as the seed alone decides.

        With a seed a last incomplete batch of one image is left out, since BatchNorm cannot learn from it. ``views`` is how
        often images are augmented, each time in another way; the first view is the same however many there are.
        ``shard`` is (rank, ranks): of every batch this rank gets its part; with a seed the parts are equal, so that no
        rank waits for another, and without one nothing is left out. The first ``skip`` batches are passed over. The
        global random state is neither read nor changed.
        """
        chosen: Split = getattr(self, split)
        count = len(chosen.labels)
        order = torch.arange(count)
        moves: list[Tensor] = []
        if shuffle_seed is not None:
            generator = torch.Generator().manual_seed(shuffle_seed)
            order = torch.randperm(count, generator=generator)
            if augment and self.augment != "none":
                moves = [_moves(count, self._padding, generator) for _ in range(views)]
        flip = self.augment == "crop+flip"
        parts = _parts(order, batch_size, shard, training=shuffle_seed is not None)
        for ids in itertools.islice(parts, skip, None):
            images = chosen.images[ids.to(chosen.images.device)].to(device, non_blocking=True)
            seen = [crop_and_flip(images, m[ids].to(device), padding=self._padding, flip=flip) for m in moves] or [
                images
            ]
            labels = chosen.labels[ids.to(chosen.labels.device)].to(device, non_blocking=True)
            first, *others = (self.normalize(view).contiguous(memory_format=torch.channels_last) for view in seen)
            yield Batch(first, labels, ids.to(device, non_blocking=True), tuple(others))

    @property
    def _padding(self) -> int:
        return max(1, round(4 * self.shape[1] / 32))  # the field's 4 pixels of 32, in proportion

    def fingerprint(self) -> str:
        """The sha256 (hex) of all images and labels, the class names and the normalisation."""
        digest = hashlib.sha256(repr((self.labels, self.mean, self.std, self.augment)).encode())
        for split in (self.train, self.val, self.test):
            for tensor in split:
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def measure(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), in units of the full range (0 to 1)."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean) ** 2).sum().sqrt().clamp(min=1 / 255).item())
    return tuple(means), tuple(deviations)


def _parts(order: Tensor, batch_size: int, shard: tuple[int, int], *, training: bool) -> Iterator[Tensor]:
    rank, ranks = shard
    for ids in order.split(batch_size):
        if not training:
            part = ids.tensor_split(ranks)[rank]
            if len(part):
                yield part
            continue
        each = len(ids) // ranks
        if each == 0 or (each == 1 and len(ids) < batch_size):
            continue
        yield ids[rank * each : (rank + 1) * each]


def _moves(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """For each image of a split (count, 3): its shift down, its shift right, whether it is flipped."""
    shifts = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([shifts, flips], dim=1)


def crop_and_flip(images: Tensor, moves: Tensor, *, padding: int, flip: bool) -> Tensor:
    """The images (batch, C, H, W), each padded with black, cut out again at its own place and flipped as told.

    ``moves`` (batch, 3) int64 holds per image the row and the column of the cut, 0 to 2 ``padding``, and 1 to flip it
    left to right (only with ``flip``).
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    at = images.device
    down, right, mirrored = moves.unbind(1)
    columns = torch.arange(width, device=at).expand(batch, width)
    if flip:
        columns = torch.where(mirrored.bool()[:, None], width - 1 - columns, columns)
    columns = (columns + right[:, None])[:, None, None, :]
    rows = (torch.arange(height, device=at) + down[:, None])[:, None, :, None]
    channel = torch.arange(channels, device=at)[None, :, None, None]
    return padded[torch.arange(batch, device=at)[:, None, None, None], channel, rows, columns]
