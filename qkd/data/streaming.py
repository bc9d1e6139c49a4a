"""Stream: images that stay in their files, decoded by worker processes while the batch before is computed."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qkd.data.decode import UNREADABLE, Crop, decode, random_crop, read, unreadable, wrong

MOST = 8  # workers, unless told otherwise
Item = tuple[int, tuple[tuple[float, ...], ...]]  # an image, and where each view is cut out of it


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of a split in their files; where a tensor (N, 3, size, size) uint8 is indexed, so can they be.

    ``stamp`` changes whenever one of the files does.
    """

    paths: tuple[str, ...]
    size: int
    crop: Crop = "shift"
    stamp: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.paths), 3, self.size, self.size

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Some of them as they are evaluated, decoded now."""
        paths = self.paths[which] if isinstance(which, slice) else [self.paths[i] for i in which.tolist()]
        return decode(paths, self.size, self.crop)


def default_workers() -> int:
    """One per processor this process may use, at most eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable)


def stream(
    pictures: ImageFiles, parts: Sequence[Tensor], cuts: Sequence[Tensor], *, workers: int, pinned: bool
) -> Iterator[list[Tensor]]:
    """Batch by batch the images whose ids are in ``parts``: (batch, 3, size, size) uint8, once per table of ``cuts`` (N, 5).

    Without cuts once, as they are evaluated. Raises DataError naming files that cannot be read. The global random state is
    neither read nor changed.
    """
    plans = _Plans(parts, cuts)
    loader: Any = DataLoader(
        _Files(pictures),
        batch_sampler=plans,
        collate_fn=_together,
        num_workers=min(workers, len(plans)),
        worker_init_fn=_deaf,
        generator=torch.Generator().manual_seed(0),
        pin_memory=pinned,
    )
    with warnings.catch_warnings():
        # of a fork beside threads: a worker touches files and Pillow alone
        warnings.filterwarnings("ignore", message=".*use of fork\\(\\)", category=DeprecationWarning)
        batches = iter(loader)
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise unreadable(batch)
        yield list(batch.unbind(1))


@dataclass(frozen=True)
class _Plans:
    """The items of each batch, made when they are asked for: a table of millions of them would be larger than its tensors."""

    parts: Sequence[Tensor]
    cuts: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[Item]]:
        for ids in self.parts:
            tables = [table[ids].tolist() for table in self.cuts]
            yield [(i, tuple(map(tuple, rows))) for i, *rows in zip(ids.tolist(), *tables, strict=True)]


class _Files(Dataset[Any]):
    def __init__(self, pictures: ImageFiles) -> None:
        self.pictures = pictures

    def __getitem__(self, item: Item) -> np.ndarray | str:
        number, cuts = item
        path, size = self.pictures.paths[number], self.pictures.size
        try:
            return np.stack([random_crop(path, size, each) for each in cuts] or [read(path, size, self.pictures.crop)])
        except UNREADABLE as error:
            return wrong(path, error)


def _together(items: list[np.ndarray | str]) -> Tensor | list[str]:
    broken = [item for item in items if isinstance(item, str)]
    return broken or torch.from_numpy(np.stack(items))


def _deaf(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, a scheduler's SIGTERM often every process of a job; when to end is for
    the one that trains to say."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    torch.set_num_threads(1)
