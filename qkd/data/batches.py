"""A data set, and the batches it gives: order and augmentation depend on a seed alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qkd.data.augment import (
    NO_AUGMENTATIONS,
    Augmentation,
    ExtraAugmentations,
    View,
    cut_out,
    mixed,
    mixing,
    transformed,
    view,
)
from qkd.data.streaming import ImageFiles, default_workers, stream
from qkd.tasks.batch import Batch

SplitName = Literal["train", "val", "test"]
MEASURED, AT_HAND = 2048, 4096  # images


class Split(NamedTuple):
    """Images (N, C, H, W) uint8, in memory or in their files, and labels (N,) int64."""

    images: Tensor | ImageFiles
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
    workers: int = field(default_factory=default_workers)  # processes that decode what does not lie in memory

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def facts(self) -> dict[str, Any]:
        """What a run, and an exported file, have to know of the data without its images."""
        return {"shape": self.shape, "labels": self.labels, "mean": self.mean, "std": self.std}

    def length(self, batch_size: int, ranks: int = 1) -> int:
        """How many batches one pass of `batches` over the training split gives each rank, with a seed."""
        whole, rest = divmod(len(self.train.labels), batch_size)
        return sum(count for images, count in ((batch_size, whole), (rest, 1)) if _each(images, batch_size, ranks))

    def at_hand(self) -> Data:
        """The same with the test split in memory: all of it, or of images in files at most 4096, spread evenly."""
        if isinstance(self.test.images, Tensor):
            return self
        ids = _evenly(len(self.test.labels), AT_HAND)
        return replace(self, test=Split(self.test.images[ids], self.test.labels[ids]))

    def affine(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """``scale`` and ``shift``, (C, 1, 1) float32 each: a normalised image is ``uint8 image * scale + shift``."""
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.mean, self.std))
        return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)

    def normalize(self, images: Tensor | ImageFiles) -> Tensor:
        """The uint8 images (..., C, H, W) as float32 of about zero mean and unit variance, on their own device."""
        images = images if isinstance(images, Tensor) else images[:]
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
        changes: ExtraAugmentations = NO_AUGMENTATIONS,
        views: int = 1,
        shard: tuple[int, int] = (0, 1),
        skip: int = 0,
    ) -> Iterator[Batch]:
        """The split once through: in order, or shuffled (and augmented) as the seed alone decides.

        With a seed a last incomplete batch of one image is left out, since BatchNorm cannot learn from it. ``augment`` does
        what the data set says of itself, ``changes`` are made besides; where they mix images, labels are the shares of the
        classes, (batch, classes) float32, and the other image is one of this rank's part of the batch. ``views`` is how
        often images are augmented, each time in another way; the first view is the same however many there are.
        ``shard`` is (rank, ranks): of every batch this rank gets its part; with a seed the parts are equal, so that no
        rank waits for another, and without one nothing is left out. The first ``skip`` batches are passed over. The
        global random state is neither read nor changed.
        """
        chosen: Split = getattr(self, split)
        count = len(chosen.labels)
        order, drawn, mixes = torch.arange(count), list[View](), None
        if shuffle_seed is not None:
            generator = torch.Generator().manual_seed(shuffle_seed)
            order = torch.randperm(count, generator=generator)
            mixes = mixing(changes, count, generator) if changes.mixes else None
            drawn = self._drawn(count, augment, changes, views, generator)
        parts = list(itertools.islice(_parts(order, batch_size, shard, training=shuffle_seed is not None), skip, None))
        for ids, found in zip(parts, self._found(chosen.images, parts, drawn, torch.device(device)), strict=True):
            labels = chosen.labels[ids.to(chosen.labels.device)].to(device, non_blocking=True)
            seen = [self._seen(images, each.of(ids), changes) for images, each in zip(found, drawn, strict=False)]
            seen = seen or [self.normalize(images) for images in found]
            if mixes is not None and len(ids) > 1:
                seen, labels = mixed(seen, labels, mixes.of(ids), self.classes)
            first, *others = (images.contiguous(memory_format=torch.channels_last) for images in seen)
            yield Batch(first, labels, ids.to(device, non_blocking=True), tuple(others))

    def _drawn(
        self, count: int, augment: bool, changes: ExtraAugmentations, views: int, generator: torch.Generator
    ) -> list[View]:
        """What happens to the images of a split, view by view; nothing where all views would be the images as they are."""
        own = self.augment if augment else "none"
        if own == "none" and not changes.alters:
            return []
        return [view(own, changes, count, self._padding, generator) for _ in range(views)]

    def _found(
        self, images: Tensor | ImageFiles, parts: Sequence[Tensor], drawn: Sequence[View], device: torch.device
    ) -> Iterator[list[Tensor]]:
        """Batch by batch the uint8 images of every view, as they come from memory or from their files."""
        cuts = [each.cuts for each in drawn if each.cuts is not None]
        if isinstance(images, Tensor):
            for ids in parts:
                yield [images[ids.to(images.device)].to(device, non_blocking=True)] * max(1, len(drawn))
            return
        pinned = device.type == "cuda"
        for found in stream(images, parts, cuts, workers=self.workers, pinned=pinned):
            here = [each.to(device, non_blocking=True) for each in found]
            yield here if cuts else here * max(1, len(drawn))

    def _seen(self, images: Tensor, drawn: View, changes: ExtraAugmentations) -> Tensor:
        """The uint8 images of one view as a network is shown them."""
        ready = self.normalize(transformed(images, drawn, changes, self._padding))
        return ready if drawn.holes is None or changes.cutout is None else cut_out(ready, drawn.holes, changes.cutout)

    @property
    def _padding(self) -> int:
        return max(1, round(4 * self.shape[1] / 32))  # the field's 4 pixels of 32, in proportion

    def fingerprint(self) -> str:
        """The sha256 (hex) of all images and labels, the class names and the normalisation."""
        digest = hashlib.sha256(repr((self.labels, self.mean, self.std, self.augment)).encode())
        for images, labels in (self.train, self.val, self.test):
            if isinstance(images, ImageFiles):
                digest.update(f"{images.stamp} {images.size} {images.crop}".encode())
            for tensor in (images, labels) if isinstance(images, Tensor) else (labels,):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def channel_statistics(images: Tensor | ImageFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), in units of the full range (0 to 1).

    Of images in files so many are looked at as are enough for three digits, spread evenly.
    """
    if not isinstance(images, Tensor):
        images = images[_evenly(len(images), MEASURED)]
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean) ** 2).sum().sqrt().clamp(min=1 / 255).item())
    return tuple(means), tuple(deviations)


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _parts(order: Tensor, batch_size: int, shard: tuple[int, int], *, training: bool) -> Iterator[Tensor]:
    rank, ranks = shard
    for ids in order.split(batch_size):
        if not training:
            part = ids.tensor_split(ranks)[rank]
            if len(part):
                yield part
            continue
        if each := _each(len(ids), batch_size, ranks):
            yield ids[rank * each : (rank + 1) * each]


def _each(images: int, batch_size: int, ranks: int) -> int:
    """How many images of a batch each rank learns from; 0 where it is left out: a lone one, of a smaller batch."""
    each = images // ranks
    return 0 if each == 1 and images < batch_size else each
