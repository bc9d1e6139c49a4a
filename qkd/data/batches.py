"""A data set in memory or in files, and the batches it gives. Order and augmentation depend on a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qkd.data.augment import (
    NO_AUGMENTATIONS,
    Augmentation,
    ExtraAugmentations,
    ViewParameters,
    augment_uint8,
    cut_out,
    draw_mixing,
    draw_view,
    mix,
)
from qkd.data.streaming import ImageFiles, default_workers, stream
from qkd.tasks.batch import Batch

SplitName = Literal["train", "val", "test"]
STATISTICS_IMAGES = 2048  # images in files whose mean and standard deviation are taken: enough for three digits
TEST_IMAGES = 4096  # test images in files that `Data.with_test_in_memory` decodes at most


class Split(NamedTuple):
    """Images (N, C, H, W) uint8, in memory or in their files, and labels (N,) int64."""

    images: Tensor | ImageFiles
    labels: Tensor

    def subset(self, ids: Tensor) -> Split:
        """The images at the indices ``ids`` (n,), in memory or in files as they are here."""
        images = self.images.subset(ids) if isinstance(self.images, ImageFiles) else self.images[ids]
        return Split(images, self.labels[ids])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: images in three splits, class names, normalisation and the augmentation it prescribes.

    ``labels`` are the names of the classes. ``mean`` and ``std`` hold one number per channel, of the full range (0 to 1),
    measured on the training split.
    """

    train: Split
    val: Split
    test: Split
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augmentation = "none"
    workers: int = field(default_factory=default_workers)  # processes that decode images in files

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    @property
    def metadata(self) -> dict[str, Any]:
        """Image shape, class names and normalisation: what a run and an exported file record of the data."""
        return {"shape": self.shape, "labels": self.labels, "mean": self.mean, "std": self.std}

    def num_train_batches(self, batch_size: int, ranks: int = 1) -> int:
        """The number of batches that `train_batches` gives each rank in one epoch."""
        whole, rest = divmod(len(self.train.labels), batch_size)
        sizes = ((batch_size, whole), (rest, 1))
        return sum(count for images, count in sizes if _images_per_rank(images, batch_size, ranks))

    def with_test_in_memory(self) -> Data:
        """The same data with the test split in memory; of images in files at most 4096, spread evenly over the split."""
        if isinstance(self.test.images, Tensor):
            return self
        ids = _evenly_spaced(len(self.test.labels), TEST_IMAGES)
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
        self, split: SplitName, batch_size: int, *, device: torch.device | str = "cpu", shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """All images of a split once, in order and without augmentation: the batches for evaluation.

        ``shard`` is (rank, ranks): this rank gets its part of every batch, and no image is left out.
        """
        chosen: Split = getattr(self, split)
        parts = list(_evaluation_parts(len(chosen.labels), batch_size, shard))
        for ids, [images] in zip(parts, self._uint8_batches(chosen.images, parts, [], device), strict=True):
            labels = chosen.labels[ids.to(chosen.labels.device)].to(device, non_blocking=True)
            yield _batch([self.normalize(images)], labels, ids, device)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        split: SplitName = "train",
        device: torch.device | str = "cpu",
        augment: bool = False,
        extra: ExtraAugmentations = NO_AUGMENTATIONS,
        num_views: int = 1,
        shard: tuple[int, int] = (0, 1),
        skip: int = 0,
    ) -> Iterator[Batch]:
        """A split once, shuffled and augmented as ``seed`` alone decides: the batches of a training epoch.

        A last batch of size 1 that is incomplete is left out, since batch norm cannot learn from it. ``augment`` applies the
        augmentation the data set prescribes, ``extra`` further ones; where these mix images, labels are class shares
        (batch, classes) float32, and the other image is one of this rank's part of the batch. ``num_views`` is how often
        images are augmented independently; the first view is the same for every number of views. ``shard`` is
        (rank, ranks): all ranks get equal parts of every batch, so that none waits for another. ``skip`` leaves out the
        first batches. The global random state is neither read nor changed.
        """
        chosen: Split = getattr(self, split)
        count = len(chosen.labels)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        mixing = draw_mixing(extra, count, generator) if extra.mixes else None
        views = self._draw_views(count, augment, extra, num_views, generator)
        parts = list(_training_parts(order, batch_size, shard))[skip:]
        for ids, loaded in zip(parts, self._uint8_batches(chosen.images, parts, views, device), strict=True):
            labels = chosen.labels[ids.to(chosen.labels.device)].to(device, non_blocking=True)
            images = [self._augmented(each, view.of(ids), extra) for each, view in zip(loaded, views, strict=False)]
            images = images or [self.normalize(each) for each in loaded]
            if mixing is not None and len(ids) > 1:
                images, labels = mix(images, labels, mixing.of(ids), self.classes)
            yield _batch(images, labels, ids, device)

    def _draw_views(
        self, count: int, augment: bool, extra: ExtraAugmentations, num_views: int, generator: torch.Generator
    ) -> list[ViewParameters]:
        """The parameters of each view; an empty list if no augmentation changes single images, so that views are equal."""
        own = self.augment if augment else "none"
        if own == "none" and not extra.changes_single_images:
            return []
        return [draw_view(own, extra, count, self._padding, generator) for _ in range(num_views)]

    def _uint8_batches(
        self,
        images: Tensor | ImageFiles,
        parts: Sequence[Tensor],
        views: Sequence[ViewParameters],
        device: torch.device | str,
    ) -> Iterator[list[Tensor]]:
        """For each batch of ids the uint8 images of every view, one if there are no views, from memory or from files."""
        device, num_views = torch.device(device), max(1, len(views))
        if isinstance(images, Tensor):
            for ids in parts:
                yield [images[ids.to(images.device)].to(device, non_blocking=True)] * num_views
            return
        crops = [view.crops for view in views if view.crops is not None]
        for decoded in stream(images, parts, crops, workers=self.workers, pinned=device.type == "cuda"):
            moved = [each.to(device, non_blocking=True) for each in decoded]
            yield moved if crops else moved * num_views

    def _augmented(self, images: Tensor, view: ViewParameters, extra: ExtraAugmentations) -> Tensor:
        """The uint8 images of one view, augmented and normalised."""
        normalized = self.normalize(augment_uint8(images, view, extra, self._padding))
        if view.holes is None or extra.cutout is None:
            return normalized
        return cut_out(normalized, view.holes, extra.cutout)

    @property
    def _padding(self) -> int:
        return max(1, round(4 * self.shape[1] / 32))  # the usual 4 pixels for 32 pixels, in proportion

    def fingerprint(self) -> str:
        """The sha256 (hex) of all images and labels, the class names and the normalisation.

        Images in files enter with the hash of their names, sizes and times.
        """
        digest = hashlib.sha256(repr((self.labels, self.mean, self.std, self.augment)).encode())
        for images, labels in (self.train, self.val, self.test):
            if isinstance(images, ImageFiles):
                digest.update(f"{images.files_hash} {images.size} {images.crop}".encode())
            for tensor in (images, labels) if isinstance(images, Tensor) else (labels,):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def test_fingerprint(self) -> str:
        """The sha256 (hex) of the test images and labels: runs with the same one can be compared image by image.

        Images in files enter with their names below the root of the data set, so that a copy of it counts as the same.
        """
        images, labels = self.test
        digest = hashlib.sha256(labels.cpu().numpy().astype("<i8").tobytes())
        if isinstance(images, ImageFiles):
            digest.update("\n".join(path.removeprefix(str(images.root)) for path in images.paths).encode())
        else:
            digest.update(repr(tuple(images.shape)).encode())
            digest.update(images.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def channel_statistics(images: Tensor | ImageFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), in units of the full range (0 to 1).

    Of images in files at most 2048 are decoded, spread evenly.
    """
    if not isinstance(images, Tensor):
        images = images[_evenly_spaced(len(images), STATISTICS_IMAGES)]
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean) ** 2).sum().sqrt().clamp(min=1 / 255).item())
    return tuple(means), tuple(deviations)


def _batch(views: Sequence[Tensor], labels: Tensor, ids: Tensor, device: torch.device | str) -> Batch:
    first, *others = (images.contiguous(memory_format=torch.channels_last) for images in views)
    return Batch(first, labels, ids.to(device, non_blocking=True), tuple(others))


def _evenly_spaced(count: int, most: int) -> Tensor:
    """At most ``most`` of the numbers 0 to ``count`` - 1, evenly spaced."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _evaluation_parts(count: int, batch_size: int, shard: tuple[int, int]) -> Iterator[Tensor]:
    """The ids of this rank's part of each batch, in order; batches of which it gets nothing are left out."""
    rank, ranks = shard
    for ids in torch.arange(count).split(batch_size):
        part = ids.tensor_split(ranks)[rank]
        if len(part):
            yield part


def _training_parts(order: Tensor, batch_size: int, shard: tuple[int, int]) -> Iterator[Tensor]:
    """The ids of this rank's part of each batch; all ranks get the same number of images."""
    rank, ranks = shard
    for ids in order.split(batch_size):
        if size := _images_per_rank(len(ids), batch_size, ranks):
            yield ids[rank * size : (rank + 1) * size]


def _images_per_rank(images: int, batch_size: int, ranks: int) -> int:
    """How many images of a batch of ``images`` each rank trains on.

    0 where the batch is left out: an incomplete batch that would give each rank a single image.
    """
    size = images // ranks
    return 0 if size == 1 and images < batch_size else size
