"""A batch: images, labels, and the number of each image in its split."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
