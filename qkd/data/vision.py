"""CIFAR, FashionMNIST and SVHN from local files; nothing is downloaded unless the recipe says ``download: true``.

CIFAR is read from its binary version, plain bytes; the version for Python consists of pickles, which could execute code.
FashionMNIST and SVHN are read by torchvision, from files that hold only numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qkd.data.batches import Augmentation, Data, Split, channel_statistics
from qkd.data.root import data_root, missing_data
from qkd.data.split import ValidationShare, hold_back
from qkd.errors import DataError
from qkd.options import Count

SITE = "https://www.cs.toronto.edu/~kriz"
SIDE = 32  # pixels


class CifarLayout(NamedTuple):
    """The layout of a CIFAR archive: each record is its labels, one byte each, and 3 x 32 x 32 bytes of image."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    names: str
    labels: int  # bytes of labels in front of an image; the last one counts


CIFAR10 = CifarLayout(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "batches.meta.txt",
    1,
)
CIFAR100 = CifarLayout(
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
    val: ValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """CIFAR-10: 50000 training and 10000 test images, 32 x 32 in colour, 10 classes.

    From ``cifar-10-batches-bin`` in ``root`` (`qkd.data.root.data_root`). The share ``val`` of each class of the training
    images is held back for validation. ``augment`` shifts and flips training images, ``limit`` keeps at most so many images
    of each split, the same number of every class. Raises DataError.
    """
    return _cifar(CIFAR10, "test_batch.bin", root, download, val, augment, limit)


def cifar100(
    *,
    root: Path | None = None,
    download: bool = False,
    val: ValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """CIFAR-100: 50000 training and 10000 test images, 32 x 32 in colour, 100 classes.

    From ``cifar-100-binary``; the options are those of `cifar10`. Raises DataError.
    """
    return _cifar(CIFAR100, "test.bin", root, download, val, augment, limit)


def fashion_mnist(
    *,
    root: Path | None = None,
    download: bool = False,
    val: ValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """FashionMNIST: 60000 training and 10000 test images of clothes, 28 x 28 in grey, 10 classes.

    From ``FashionMNIST/raw``; the options are those of `cifar10`. Raises DataError.
    """
    from torchvision.datasets import FashionMNIST

    folder = data_root(root)
    with _torchvision_errors("fashion_mnist", folder, "FashionMNIST/raw"):
        train, test = (FashionMNIST(str(folder), train=part, download=download) for part in (True, False))
    splits = [Split(each.data[:, None].contiguous(), each.targets.long()) for each in (train, test)]
    return _with_validation(splits, tuple(train.classes), val, "crop+flip" if augment else "none", limit)


def svhn(
    *,
    root: Path | None = None,
    download: bool = False,
    val: ValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """SVHN: 73257 training and 26032 test images of house numbers, 32 x 32 in colour, 10 classes.

    From ``train_32x32.mat`` and ``test_32x32.mat``; the options are those of `cifar10`, but ``augment`` only shifts: a
    mirrored 2 is no 2. Raises DataError.
    """
    from torchvision.datasets import SVHN

    folder = data_root(root)
    with _torchvision_errors("svhn", folder, "train_32x32.mat"):
        parts = [SVHN(str(folder), split=part, download=download) for part in ("train", "test")]
    splits = [Split(torch.from_numpy(each.data), torch.from_numpy(each.labels).long()) for each in parts]
    return _with_validation(splits, tuple("0123456789"), val, "crop" if augment else "none", limit)


@contextlib.contextmanager
def _torchvision_errors(what: str, folder: Path, expected: str) -> Iterator[None]:
    """Turn an error of torchvision into a DataError that names the data set ``what`` and the files ``expected``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "download=True" in str(error):
            raise missing_data(what, folder, expected) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{what}: {folder}: {reason}", key="data.unreadable") from error


def _cifar(
    layout: CifarLayout, test: str, root: Path | None, download: bool, val: float, augment: bool, limit: int | None
) -> Data:
    base = data_root(root)
    folder = base if (base / layout.train[0]).is_file() else base / layout.folder
    if not (folder / layout.train[0]).is_file():
        if not download:
            raise _missing_cifar(layout, base)
        _download(layout, base)
    splits = [_read_records(layout, [folder / name for name in names]) for names in (layout.train, (test,))]
    try:
        names = (folder / layout.names).read_text().split()
    except OSError as error:
        raise DataError(f"{folder / layout.names}: {error.strerror}", key="data.unreadable-file") from error
    return _with_validation(splits, tuple(names), val, "crop+flip" if augment else "none", limit)


def _missing_cifar(layout: CifarLayout, base: Path) -> DataError:
    pickled = layout.folder.replace("-bin", "-py") if layout is CIFAR10 else "cifar-100-python"
    if (base / pickled).is_dir():
        return DataError(
            f"{base / pickled}: the version for Python, made of pickles, is not read; "
            f"unpack {layout.archive} beside it ({SITE}/{layout.archive})",
            key="data.pickled",
        )
    return missing_data(layout.folder, base, layout.folder)


def _download(layout: CifarLayout, base: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(f"{SITE}/{layout.archive}", str(base), md5=layout.md5)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{SITE}/{layout.archive}: {str(error).splitlines()[0]}", key="data.download-failed") from error


def _read_records(layout: CifarLayout, paths: Sequence[Path]) -> Split:
    size = layout.labels + 3 * SIDE * SIDE
    found = []
    for path in paths:
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", key="data.unreadable-file") from error
        if len(content) == 0 or len(content) % size:
            raise DataError(
                f"{path}: {len(content)} bytes are not a whole number of records of {size}; download it again",
                key="data.damaged-file",
            )
        found.append(content.reshape(-1, size))
    records = torch.from_numpy(np.concatenate(found))
    images = records[:, layout.labels :].reshape(-1, 3, SIDE, SIDE).contiguous()
    return Split(images, records[:, layout.labels - 1].long())


def _with_validation(
    splits: Sequence[Split], names: tuple[str, ...], val: float, augment: Augmentation, limit: int | None
) -> Data:
    """Data of the splits train and test, the share ``val`` of train held back for validation."""
    whole, test = (_first_of_each_class(split, limit) for split in splits)
    train, validation = hold_back(whole, val)
    mean, std = channel_statistics(train.images)
    return Data(train, validation, test, names, mean, std, augment)


def _first_of_each_class(split: Split, limit: int | None) -> Split:
    """The first images of each class, equally many, at most ``limit`` in all but one of each class."""
    if limit is None:
        return split
    classes: list[Tensor] = [(split.labels == label).nonzero().flatten() for label in split.labels.unique()]
    return split.subset(torch.cat([ids[: max(1, limit // len(classes))] for ids in classes]).sort().values)
