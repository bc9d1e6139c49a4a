"""Data of one's own, named in a recipe as ``./file.py:name``: a function that gives images, or a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.split import stratified_split
from qkd.errors import DataError

SPLITS = ("train", "val", "test")
HELD_BACK = 0.1


def user_data(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Data:
    """What the file gives, as Data.

    * A subclass of Dataset is made once per split, ``make(split, **options)`` with train, val and test; its items are
      (image, label), the image a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W), of bytes, all of one size.
    * A function gives Data, or a mapping of train, test and perhaps val to such a Dataset or to a pair of arrays:
      images (N, C, H, W) uint8 and labels (N,).

    Without val a tenth of every class is held back. ``labels`` (names of the classes) and ``augment`` ("none", "crop",
    "crop+flip") are read from the class or the mapping where they are given. Raises DataError.
    """
    try:
        per_split = isinstance(make, type) and issubclass(make, Dataset)
        made: Any = _splits_of(make, options) if per_split else make(**options)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error
    if isinstance(made, Data):
        return made
    if not isinstance(made, Mapping) or not {"train", "test"} <= made.keys():
        what = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
        raise DataError(f"{name}: gives {what or 'nothing'}; expected Data, or a mapping with train and test")
    splits = {part: _split(f"{name}: {part}", made[part]) for part in SPLITS if made.get(part) is not None}
    if "val" not in splits:
        if len(splits["train"].labels) < 10 * len(splits["train"].labels.unique()):
            raise DataError(f"{name}: too few images to hold back a tenth of every class; give val as well")
        rest, held = stratified_split(splits["train"].labels, (1 - HELD_BACK, HELD_BACK), seed=0)
        whole = splits["train"]
        splits["train"], splits["val"] = (Split(whole.images[ids], whole.labels[ids]) for ids in (rest, held))
    return _data(name, splits, made.get("labels"), made.get("augment", "none"))


def _splits_of(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {part: make(part, **options) for part in SPLITS}
    labels = getattr(made["train"], "classes", getattr(make, "labels", None))
    return {**made, "labels": labels, "augment": getattr(make, "augment", "none")}


def _split(where: str, given: Any) -> Split:
    pair = _collected(where, given) if isinstance(given, Dataset) else given
    try:
        images, labels = (torch.as_tensor(np.asarray(each) if not isinstance(each, Tensor) else each) for each in pair)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected images and labels: {error}") from error
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        found = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
        raise DataError(f"{where}: images must be uint8 (N, C, H, W) with one or three channels, found {found}")
    if labels.dim() != 1 or len(labels) != len(images) or not len(labels):
        raise DataError(f"{where}: {len(images)} images, but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or int(labels.min()) < 0:
        raise DataError(f"{where}: labels must be whole numbers from 0")
    return Split(images.contiguous(), labels.long())


def _collected(where: str, dataset: Any) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for number in range(_length(where, dataset)):
        try:
            image, label = dataset[number]
            images.append(_image(f"{where}, item {number}", image))
            labels.append(int(label))
        except DataError:
            raise
        except Exception as error:  # it is code of the user's own
            said = f"{type(error).__name__}: {error}; an item is (image, label), the label a whole number"
            raise DataError(f"{where}, item {number}: {said}") from error
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{where}: images of one size are needed, found {_few({tuple(i.shape) for i in images})}")
    return torch.stack(images), torch.tensor(labels)


def _length(where: str, dataset: Any) -> int:
    try:
        return len(dataset)
    except Exception as error:
        raise DataError(f"{where}: how many images are there? {type(error).__name__}: {error}") from error


def _few(things: set[Any]) -> str:
    return ", ".join(map(str, sorted(things)[:3])) or "none"


def _image(where: str, image: Any) -> Tensor:
    """(C, H, W) uint8 of whatever an item holds."""
    if isinstance(image, Tensor):
        found = image
    else:
        array = np.asarray(image)
        found = torch.from_numpy(np.ascontiguousarray(array[..., None] if array.ndim == 2 else array)).permute(2, 0, 1)
    if found.dtype != torch.uint8:
        raise DataError(f"{where}: images must be bytes (uint8, 0 to 255), found {found.dtype}; leave out ToTensor")
    return found


def _data(name: str, splits: Mapping[str, Split], labels: Sequence[str] | None, augment: Any) -> Data:
    shapes = {tuple(split.images.shape[1:]) for split in splits.values()}
    if len(shapes) > 1:
        raise DataError(f"{name}: the splits hold images of different sizes: {_few(shapes)}")
    if augment not in ("none", "crop", "crop+flip"):
        raise DataError(f"{name}: augment must be none, crop or crop+flip, found {augment!r}")
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    names = tuple(map(str, labels)) if labels is not None else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{name}: label {count - 1} has no name; {len(names)} names are given")
    mean, std = channel_statistics(splits["train"].images)
    return Data(splits["train"], splits["val"], splits["test"], names, mean, std, augment)
