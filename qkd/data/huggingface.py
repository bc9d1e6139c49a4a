"""Data sets of Hugging Face's `datasets` library, an extra: a folder that was saved on disk, or one of the hub."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.decode import center_crop
from qkd.data.split import stratified_split
from qkd.errors import DataError, nearest
from qkd.options import Bounds, Count

Held = Annotated[float, Bounds(above=0, below=1)]
EXTRA = "data.name: huggingface: `datasets` is not installed; pip install 'qkd[datasets]'"


def huggingface(
    *,
    path: str,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    val: Held = 0.1,
    size: Count = 32,
    augment: bool = True,
    download: bool = False,
) -> Data:
    """A data set of Hugging Face: a folder written by ``save_to_disk``, or with ``download: true`` a name of the hub.

    ``image`` and ``label`` name its columns, ``train`` and ``test`` its splits; the share ``val`` of each class of train is
    held back. Images are brought to RGB of ``size`` x ``size`` and lie in memory. Raises DataError.
    """
    splits = _loaded(path, download)
    for name in (train, test):
        if name not in splits:
            raise DataError(f"{path}: no split {name!r}{nearest(name, splits)}; there are {', '.join(splits)}")
    names = _names(path, splits[train], label)
    learn, final = (_split(f"{path}, split {name}", splits[name], image, label, size) for name in (train, test))
    if len(names) <= int(max(learn.labels.max(), final.labels.max())):
        names = tuple(map(str, range(1 + int(max(learn.labels.max(), final.labels.max())))))
    rest, held = stratified_split(learn.labels, (1 - val, val), seed=0)
    assert isinstance(learn.images, torch.Tensor)
    choose = Split(learn.images[held], learn.labels[held])
    learn = Split(learn.images[rest], learn.labels[rest])
    mean, std = channel_statistics(learn.images)
    return Data(learn, choose, final, names, mean, std, "crop+flip" if augment else "none")


def _loaded(path: str, download: bool) -> Any:
    """The splits by name."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(EXTRA) from error
    with _said(path):
        if Path(path).expanduser().is_dir():
            return datasets.load_from_disk(str(Path(path).expanduser()))
        if download:
            return datasets.load_dataset(path)
    raise DataError(
        f"{path}: no folder of that name (`save_to_disk` writes one); `download: true` fetches a data set of the hub"
    )


@contextlib.contextmanager
def _said(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the library and its parsers may raise
        raise DataError(f"{path}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _names(path: str, split: Any, label: str) -> tuple[str, ...]:
    column = split.features.get(label)
    if column is None:
        known = ", ".join(split.features)
        raise DataError(f"{path}: no column {label!r}{nearest(label, split.features)}; there are {known} (data.label)")
    return tuple(map(str, getattr(column, "names", None) or ()))


def _split(where: str, split: Any, image: str, label: str, size: int) -> Split:
    if image not in split.features:
        known = ", ".join(split.features)
        raise DataError(f"{where}: no column {image!r}{nearest(image, split.features)}; there are {known} (data.image)")
    labels: Sequence[Any] = split[label]
    if not len(labels) or not all(isinstance(each, int) and each >= 0 for each in labels):
        raise DataError(f"{where}: {label} must be whole numbers from 0, one for each image")
    images = np.empty((len(labels), 3, size, size), dtype=np.uint8)
    for number, row in enumerate(split):
        picture = row[image]
        if not isinstance(picture, Image.Image):
            found = type(picture).__name__
            raise DataError(
                f"{where}, row {number}: {image} must be an image, found {found} (data.image names its column)"
            )
        images[number] = center_crop(picture.convert("RGB"), size)
    return Split(torch.from_numpy(images), torch.tensor(list(labels)))
