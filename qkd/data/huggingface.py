"""Data sets of Hugging Face's `datasets` library, an extra: from a folder on disk or from the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.decode import center_crop
from qkd.data.split import ValidationShare, hold_back
from qkd.errors import DataError, nearest
from qkd.options import Count, require_extra


def huggingface(
    *,
    path: str,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    val: ValidationShare = 0.1,
    size: Count = 32,
    augment: bool = True,
    download: bool = False,
) -> Data:
    """A data set of Hugging Face: a folder written by ``save_to_disk``, or with ``download: true`` a name of the hub.

    ``image`` and ``label`` name its columns, ``train`` and ``test`` its splits; the share ``val`` of each class of train is
    held back for validation. Images are brought to RGB of ``size`` x ``size`` and kept in memory. Raises DataError.
    """
    splits = _load_splits(path, download)
    for name in (train, test):
        if name not in splits:
            known = ", ".join(splits)
            raise DataError(
                f"{path}: no split {name!r}{nearest(name, splits)}; there are {known}", key="data.unknown-split"
            )
    names = _class_names(path, splits[train], label)
    whole, test_split = (_split(f"{path}, split {name}", splits[name], image, label, size) for name in (train, test))
    classes = 1 + int(max(whole.labels.max(), test_split.labels.max()))
    if len(names) < classes:
        names = tuple(map(str, range(classes)))
    train_split, val_split = hold_back(whole, val)
    mean, std = channel_statistics(train_split.images)
    return Data(train_split, val_split, test_split, names, mean, std, "crop+flip" if augment else "none")


def _load_splits(path: str, download: bool) -> Any:
    """A mapping of split names to splits of the library."""
    datasets = require_extra("datasets", "data.name: huggingface", error=DataError)
    with _library_errors(path):
        if Path(path).expanduser().is_dir():
            return datasets.load_from_disk(str(Path(path).expanduser()))
        if download:
            return datasets.load_dataset(path)
    raise DataError(
        f"{path}: no folder of that name (`save_to_disk` writes one); `download: true` fetches a data set of the hub",
        key="data.missing-folder",
    )


@contextlib.contextmanager
def _library_errors(path: str) -> Iterator[None]:
    """Turn any error of the library into a DataError with the first line of its message."""
    try:
        yield
    except Exception as error:  # whatever the library and its parsers may raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: {reason}", key="data.unreadable") from error


def _class_names(path: str, split: Any, label: str) -> tuple[str, ...]:
    """The class names that the column of labels declares; none if it declares none."""
    if label not in split.features:
        raise _unknown_column(path, label, split.features, "data.label")
    return tuple(map(str, getattr(split.features[label], "names", None) or ()))


def _unknown_column(where: str, name: str, columns: Any, setting: str) -> DataError:
    known = ", ".join(columns)
    return DataError(
        f"{where}: no column {name!r}{nearest(name, columns)}; there are {known} ({setting})", key="data.unknown-column"
    )


def _split(where: str, split: Any, image: str, label: str, size: int) -> Split:
    if image not in split.features:
        raise _unknown_column(where, image, split.features, "data.image")
    labels: Sequence[Any] = split[label]
    if not len(labels) or not all(isinstance(each, int) and each >= 0 for each in labels):
        raise DataError(
            f"{where}: {label} must be whole numbers from 0, one for each image", key="data.labels-not-integers"
        )
    images = np.empty((len(labels), 3, size, size), dtype=np.uint8)
    for number, row in enumerate(split):
        picture = row[image]
        if not isinstance(picture, Image.Image):
            found = type(picture).__name__
            raise DataError(
                f"{where}, row {number}: {image} must be an image, found {found} (data.image names its column)",
                key="data.not-an-image",
            )
        images[number] = center_crop(picture.convert("RGB"), size)
    return Split(torch.from_numpy(images), torch.tensor(list(labels)))
