"""The field's small image sets, from local files; nothing is fetched unless the recipe says ``download: true``.

CIFAR is read from its binary version, plain bytes; the version for Python consists of pickles, which could execute code.
FashionMNIST and SVHN are read by torchvision, whose files hold numbers alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qkd.data.batches import Augmentation, Data, Split, channel_statistics
from qkd.data.root import data_root, missing_data
from qkd.data.split import stratified_split
from qkd.errors import DataError
from qkd.options import Bounds, Count

Held = Annotated[float, Bounds(above=0, below=1)]
SITE = "https://www.cs.toronto.edu/~kriz"
SIDE = 32


class Cifar(NamedTuple):
    """How a CIFAR archive is laid out: each record is its labels, one byte each, and 3 x 32 x 32 bytes of image."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    names: str
    labels: int  # bytes of labels in front of an image; the last one counts


TEN = Cifar(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "batches.meta.txt",
    1,
)
HUNDRED = Cifar(
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary",
    ("train.bin",),
    "fine_label_names.txt",
    2,
)


def cifar10(
    *,
    root: Path | None = None,
    download: bool = False,
    val: Held = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """50000 colour images of 32 x 32 in 10 classes, and 10000 to test with; the share ``val`` of each class is held back.

    From ``cifar-10-batches-bin`` in ``root`` (`qkd.data.root.data_root`). ``augment`` shifts and flips for training,
    ``limit`` keeps so many images of each split, the same number of every class. Raises DataError.
    """
    return _cifar(TEN, "test_batch.bin", root, download, val, augment, limit)


def cifar100(
    *,
    root: Path | None = None,
    download: bool = False,
    val: Held = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """As `cifar10`, in 100 classes, from ``cifar-100-binary``."""
    return _cifar(HUNDRED, "test.bin", root, download, val, augment, limit)


def fashion_mnist(
    *,
    root: Path | None = None,
    download: bool = False,
    val: Held = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """60000 grey images of clothes, 28 x 28, in 10 classes, and 10000 to test with; from ``FashionMNIST/raw``."""
    from torchvision.datasets import FashionMNIST

    folder = data_root(root)
    with _reading("fashion_mnist", folder, "FashionMNIST/raw"):
        train, test = (FashionMNIST(str(folder), train=part, download=download) for part in (True, False))
    splits = [Split(each.data[:, None].contiguous(), each.targets.long()) for each in (train, test)]
    return _divided(splits, tuple(train.classes), val, "crop+flip" if augment else "none", limit)


def svhn(
    *,
    root: Path | None = None,
    download: bool = False,
    val: Held = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """73257 house numbers, 32 x 32 in colour, in 10 classes, and 26032 to test with; from ``train_32x32.mat``.

    ``augment`` shifts, and never flips: a mirrored 2 is no 2.
    """
    from torchvision.datasets import SVHN

    folder = data_root(root)
    with _reading("svhn", folder, "train_32x32.mat"):
        parts = [SVHN(str(folder), split=part, download=download) for part in ("train", "test")]
    splits = [Split(torch.from_numpy(each.data), torch.from_numpy(each.labels).long()) for each in parts]
    return _divided(splits, tuple("0123456789"), val, "crop" if augment else "none", limit)


@contextlib.contextmanager
def _reading(what: str, folder: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "download=True" in str(error):
            raise missing_data(what, folder, expected) from error
        raise DataError(f"{what}: {folder}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _cifar(
    layout: Cifar, test: str, root: Path | None, download: bool, val: float, augment: bool, limit: int | None
) -> Data:
    base = data_root(root)
    folder = base if (base / layout.train[0]).is_file() else base / layout.folder
    if not (folder / layout.train[0]).is_file():
        if not download:
            raise _missing_cifar(layout, base)
        _download(layout, base)
    splits = [_records(layout, [folder / name for name in names]) for names in (layout.train, (test,))]
    try:
        names = (folder / layout.names).read_text().split()
    except OSError as error:
        raise DataError(f"{folder / layout.names}: {error.strerror}") from error
    return _divided(splits, tuple(names), val, "crop+flip" if augment else "none", limit)


def _missing_cifar(layout: Cifar, base: Path) -> DataError:
    pickled = layout.folder.replace("-bin", "-py") if layout is TEN else "cifar-100-python"
    if (base / pickled).is_dir():
        return DataError(
            f"{base / pickled}: the version for Python, made of pickles, is not read; "
            f"unpack {layout.archive} beside it ({SITE}/{layout.archive})"
        )
    return missing_data(layout.folder, base, layout.folder)


def _download(layout: Cifar, base: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(f"{SITE}/{layout.archive}", str(base), md5=layout.md5)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{SITE}/{layout.archive}: {str(error).splitlines()[0]}") from error


def _records(layout: Cifar, paths: Sequence[Path]) -> Split:
    size = layout.labels + 3 * SIDE * SIDE
    found = []
    for path in paths:
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        if len(content) == 0 or len(content) % size:
            raise DataError(f"{path}: {len(content)} bytes are no whole number of records of {size}; fetch it again")
        found.append(content.reshape(-1, size))
    records = torch.from_numpy(np.concatenate(found))
    images = records[:, layout.labels :].reshape(-1, 3, SIDE, SIDE).contiguous()
    return Split(images, records[:, layout.labels - 1].long())


def _divided(
    splits: Sequence[Split], names: tuple[str, ...], val: float, augment: Augmentation, limit: int | None
) -> Data:
    train, test = (_at_most(split, limit) for split in splits)
    rest, held = stratified_split(train.labels, (1 - val, val), seed=0)
    learn, choose = (Split(train.images[ids], train.labels[ids]) for ids in (rest, held))
    mean, std = channel_statistics(learn.images)
    return Data(learn, choose, test, names, mean, std, augment)


def _at_most(split: Split, limit: int | None) -> Split:
    """An equal number of each class, at most ``limit`` together, the first ones."""
    if limit is None:
        return split
    classes: list[Tensor] = [(split.labels == label).nonzero().flatten() for label in split.labels.unique()]
    kept = torch.cat([ids[: max(1, limit // len(classes))] for ids in classes]).sort().values
    return Split(split.images[kept], split.labels[kept])
