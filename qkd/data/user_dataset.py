"""Data sets written by the user, named in a recipe as ``./file.py:Name``: a function, or a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.split import hold_back
from qkd.errors import DataError

SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 0.1  # of each class of the training images, where there is no validation split


def user_data(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Data:
    """Call ``make``, which the recipe names ``name``, and return what it gives as Data.

    * A subclass of Dataset is constructed once per split, ``make(split, **options)`` with train, val and test; its items
      are (image, label), the image a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W), of uint8, all of one
      size.
    * A function returns Data, or a mapping of train, test and perhaps val to such a Dataset or to a pair of arrays:
      images (N, C, H, W) uint8 and labels (N,).

    Without val a tenth of every class is held back for validation. ``labels`` (names of the classes) and ``augment``
    ("none", "crop", "crop+flip") are read from the class or the mapping where they are given. Raises DataError.
    """
    made = _call(name, make, options)
    if isinstance(made, Data):
        return made
    if not isinstance(made, Mapping) or not {"train", "test"} <= made.keys():
        found = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
        raise DataError(
            f"{name}: gives {found or 'nothing'}; expected Data, or a mapping with train and test",
            key="user-data.wrong-result",
        )
    splits = {part: _split(f"{name}: {part}", made[part]) for part in SPLITS if made.get(part) is not None}
    if "val" not in splits:
        whole = splits["train"]
        if len(whole.labels) < 10 * len(whole.labels.unique()):
            raise DataError(
                f"{name}: too few images to hold back a tenth of every class; give val as well",
                key="user-data.too-few-to-hold-back",
            )
        splits["train"], splits["val"] = hold_back(whole, VALIDATION_SHARE)
    return _data(name, splits, made.get("labels"), made.get("augment", "none"))


def _call(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """The function's result, or a mapping of splits to Datasets with ``labels`` and ``augment``."""
    per_split = isinstance(make, type) and issubclass(make, Dataset)
    try:
        if not per_split:
            return make(**options)
        made: dict[str, Any] = {part: make(part, **options) for part in SPLITS}
        labels = getattr(made["train"], "classes", getattr(make, "labels", None))
        return {**made, "labels": labels, "augment": getattr(make, "augment", "none")}
    except DataError:
        raise
    except Exception as error:  # it is the user's code
        raise DataError(f"{name}: {type(error).__name__}: {error}", key="user-data.failed") from error


def _split(where: str, given: Any) -> Split:
    """A Dataset or a pair of arrays as a Split, checked."""
    pair = _collect(where, given) if isinstance(given, Dataset) else given
    try:
        images, labels = (torch.as_tensor(np.asarray(each) if not isinstance(each, Tensor) else each) for each in pair)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected images and labels: {error}", key="user-data.not-a-pair") from error
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        found = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
        raise DataError(
            f"{where}: images must be uint8 (N, C, H, W) with one or three channels, found {found}",
            key="user-data.wrong-images",
        )
    if labels.dim() != 1 or len(labels) != len(images) or not len(labels):
        raise DataError(
            f"{where}: {len(images)} images, but labels of shape {tuple(labels.shape)}", key="user-data.wrong-labels"
        )
    if labels.is_floating_point() or int(labels.min()) < 0:
        raise DataError(f"{where}: labels must be whole numbers from 0", key="user-data.labels-not-integers")
    return Split(images.contiguous(), labels.long())


def _collect(where: str, dataset: Any) -> tuple[Tensor, Tensor]:
    """All items of a Dataset: images (N, C, H, W) uint8 and labels (N,) int64."""
    images, labels = [], []
    for number in range(_length(where, dataset)):
        try:
            image, label = dataset[number]
            images.append(_image(f"{where}, item {number}", image))
            labels.append(int(label))
        except DataError:
            raise
        except Exception as error:  # it is the user's code
            reason = f"{type(error).__name__}: {error}; an item is (image, label), the label a whole number"
            raise DataError(f"{where}, item {number}: {reason}", key="user-data.failed-item") from error
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise DataError(
            f"{where}: images must have one size, found {_first_three(shapes)}", key="user-data.differing-sizes"
        )
    return torch.stack(images), torch.tensor(labels)


def _length(where: str, dataset: Any) -> int:
    try:
        return len(dataset)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: len() of the data set failed: {reason}", key="user-data.no-length") from error


def _first_three(shapes: set[Any]) -> str:
    return ", ".join(map(str, sorted(shapes)[:3])) or "none"


def _image(where: str, image: Any) -> Tensor:
    """The image of an item as (C, H, W) uint8."""
    if isinstance(image, Tensor):
        found = image
    else:
        array = np.asarray(image)
        found = torch.from_numpy(np.ascontiguousarray(array[..., None] if array.ndim == 2 else array)).permute(2, 0, 1)
    if found.dtype != torch.uint8:
        raise DataError(
            f"{where}: images must be uint8 (0 to 255), found {found.dtype}; leave out ToTensor",
            key="user-data.wrong-images",
        )
    return found


def _data(name: str, splits: Mapping[str, Split], labels: Sequence[str] | None, augment: Any) -> Data:
    """The splits as Data; classes without given names are numbered."""
    shapes = {tuple(split.images.shape[1:]) for split in splits.values()}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: the splits hold images of different sizes: {_first_three(shapes)}",
            key="user-data.differing-sizes",
        )
    if augment not in ("none", "crop", "crop+flip"):
        raise DataError(
            f"{name}: augment must be none, crop or crop+flip, found {augment!r}", key="user-data.unknown-augmentation"
        )
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    names = tuple(map(str, labels)) if labels is not None else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(
            f"{name}: label {count - 1} has no name; {len(names)} names are given", key="user-data.missing-class-name"
        )
    mean, std = channel_statistics(splits["train"].images)
    return Data(splits["train"], splits["val"], splits["test"], names, mean, std, augment)
