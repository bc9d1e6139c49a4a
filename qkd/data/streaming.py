"""Images that stay in their files, decoded by worker processes while the batch before is computed."""

from __future__ import annotations

import hashlib
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qkd.data.decode import (
    UNREADABLE,
    Crop,
    decode_images,
    describe_failure,
    random_crop,
    read_image,
    unreadable_images,
)
from qkd.errors import DataError
from qkd.storage.environment import usable_cores

MAX_WORKERS = 8  # processes, unless set otherwise
Item = tuple[int, tuple[tuple[float, ...], ...]]  # an image's id, and the five numbers of the random crop of each view


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of a split in their files; indexed like a tensor (N, 3, size, size) uint8, they are decoded.

    ``root`` is the folder below which the files are named, ``files_hash`` the result of `hash_of_files`.
    """

    paths: tuple[str, ...]
    size: int
    crop: Crop
    root: Path
    files_hash: str

    @classmethod
    def found(cls, paths: tuple[str, ...], size: int, crop: Crop, root: Path) -> ImageFiles:
        """The files as they are now. Raises DataError for one that does not exist."""
        return cls(paths, size, crop, root, hash_of_files(paths, root))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, size, size)"""
        return len(self.paths), 3, self.size, self.size

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Decode the images of a slice or of indices (n,) with the crop for evaluation, (n, 3, size, size) uint8."""
        paths = self.paths[which] if isinstance(which, slice) else [self.paths[i] for i in which.tolist()]
        return decode_images(paths, self.size, self.crop)

    def subset(self, ids: Tensor) -> ImageFiles:
        """The files at the indices ``ids`` (n,)."""
        return ImageFiles.found(tuple(self.paths[i] for i in ids.tolist()), self.size, self.crop, self.root)


def hash_of_files(paths: Sequence[str], root: Path) -> str:
    """The sha256 (hex) of the files' names below ``root``, their sizes and the times they were last written.

    It changes whenever one of the files does. Raises DataError for a file that does not exist.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path for each takes seconds
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", key="data.missing-file") from error
        digest.update(f"{path.removeprefix(str(root))} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def default_workers() -> int:
    """One worker per core this process may use, at most eight."""
    return min(MAX_WORKERS, usable_cores())


def stream(
    images: ImageFiles, parts: Sequence[Tensor], crops: Sequence[Tensor], *, workers: int, pinned: bool
) -> Iterator[list[Tensor]]:
    """Decode, for each batch of ids in ``parts``, its images: a list of (batch, 3, size, size) uint8.

    The list holds one tensor per table of random crops (N, 5) in ``crops``, or one with the crop for evaluation if there is
    none. Raises DataError naming files that cannot be read. The global random state is neither read nor changed.
    """
    sampler = _BatchSampler(parts, crops)
    loader: Any = DataLoader(
        _DecodedFiles(images),
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=min(workers, len(sampler)),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),
        pin_memory=pinned,
    )
    with warnings.catch_warnings():
        # of a fork beside threads: a worker touches files and Pillow alone
        warnings.filterwarnings("ignore", message=".*use of fork\\(\\)", category=DeprecationWarning)
        batches = iter(loader)
    try:
        for batch in batches:
            if not isinstance(batch, Tensor):
                raise unreadable_images(batch)
            yield list(batch.unbind(1))
    finally:
        del batches  # ends the workers now; a traceback would keep them, and they ignore what ends them at exit


@dataclass(frozen=True)
class _BatchSampler:
    """The items of each batch, made only when they are needed: a list of millions of them would be larger than its tensors."""

    parts: Sequence[Tensor]
    crops: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[Item]]:
        for ids in self.parts:
            tables = [table[ids].tolist() for table in self.crops]
            yield [(i, tuple(map(tuple, rows))) for i, *rows in zip(ids.tolist(), *tables, strict=True)]


class _DecodedFiles(Dataset[Any]):
    """An item is the decoded views of an image, (views, 3, size, size) uint8, or a text if its file cannot be read."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __getitem__(self, item: Item) -> np.ndarray | str:
        number, crops = item
        path, size = self.images.paths[number], self.images.size
        try:
            views = [random_crop(path, size, each) for each in crops]
            return np.stack(views or [read_image(path, size, self.images.crop)])
        except UNREADABLE as error:
            return describe_failure(path, error)


def _collate(items: list[np.ndarray | str]) -> Tensor | list[str]:
    broken = [item for item in items if isinstance(item, str)]
    return broken or torch.from_numpy(np.stack(items))


def _start_worker(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM and use one thread.

    A terminal sends Ctrl-C to every process, a scheduler often sends SIGTERM to every process of a job; only the training
    process decides when to stop.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    torch.set_num_threads(1)
