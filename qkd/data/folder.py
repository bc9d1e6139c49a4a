"""A folder of images, one folder per class: ``root/train/<class>/*.png`` and ``root/test/<class>/*.png``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from qkd.data.augment import Augmentation
from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.decode import Crop
from qkd.data.decode_cache import decode_cached
from qkd.data.image_files import (
    Files,
    keep_listed,
    limit_per_class,
    list_images,
    paths_and_labels,
    require_same_classes,
)
from qkd.data.split import OptionalValidationShare, hold_back
from qkd.data.streaming import ImageFiles
from qkd.errors import DataError
from qkd.options import Count

Result = TypeVar("Result")
Memory = Literal["auto", True, False]
"""Whether a data set is decoded into memory."""
MEMORY_LIMIT = 2**32
"""Bytes of decoded images up to which ``memory: auto`` keeps a data set in memory: 4 GiB, 350 000 images of 64 x 64."""


def folder(
    *,
    root: Path,
    size: Count = 32,
    val: OptionalValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
    crop: Crop = "shift",
    memory: Memory = "auto",
) -> Data:
    """All images below ``root`` as RGB of ``size`` x ``size``, in memory or decoded by worker processes as they are needed.

    Without a folder ``root/val`` the share ``val`` of every class of the training images is held back, always the same.

    * ``augment``: augment training images. ``crop``: ``shift`` scales an image to fit, crops its centre and shifts that;
      ``resized`` takes a random resized crop each time, as is usual for ImageNet, and decodes the files again for it.
    * ``memory``: auto keeps up to 4 GiB of decoded images in memory. What is decoded is the same either way.
    * ``limit`` keeps at most so many images of each split, the same number of every class, always the same ones; ``only``
      keeps the training images that a text file names, a line each (``cat/0001.png``).

    Raises DataError for a missing folder, an empty class, classes that differ between the splits, and files that cannot be
    read, by name.
    """
    root = Path(root)
    names = [name for name in ("train", "val", "test") if name != "val" or (root / "val").is_dir()]
    splits = _for_each_split(names, lambda name: list_images(root / name))
    require_same_classes(root, splits)
    if only is not None:
        splits["train"] = keep_listed(splits["train"], only, root / "train")
    splits = {name: limit_per_class(files, limit) for name, files in splits.items()}
    return data_from_files(splits, root, size=size, val=val, augment=augment, crop=crop, memory=memory)


def data_from_files(
    splits: dict[str, Files],
    root: Path,
    *,
    size: int,
    val: float,
    augment: bool,
    crop: Crop,
    memory: Memory,
    labels: tuple[str, ...] | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Data:
    """The image files of each split as Data; if there is no split ``val``, the share ``val`` of train is held back.

    ``labels`` are the names of the classes, by default those of the folders. ``statistics`` are mean and standard deviation
    per channel, by default measured on the training split. Raises DataError.
    """
    in_memory = _fits_in_memory(
        memory, crop, sum(len(some) for files in splits.values() for some in files.values()), size
    )
    found = _for_each_split(splits, lambda name: _split(splits[name], root, size, crop, in_memory))
    if "val" not in found:
        found["train"], found["val"] = hold_back(found["train"], val)
    mean, std = statistics or channel_statistics(found["train"].images)
    augmentation: Augmentation = "resized+flip" if crop == "resized" else "crop+flip"
    names = labels or tuple(splits["train"])
    return Data(found["train"], found["val"], found["test"], names, mean, std, augmentation if augment else "none")


def _for_each_split(names: Iterable[str], function: Callable[[str], Result]) -> dict[str, Result]:
    """The result of ``function`` for each split. Raises one DataError for all splits in which it raised one."""
    found: dict[str, Result] = {}
    errors: list[DataError] = []
    for name in names:
        try:
            found[name] = function(name)
        except DataError as error:
            errors.append(error)
    if errors:
        raise DataError("; ".join(map(str, errors)), key=errors[0].key)
    return found


def _fits_in_memory(memory: Memory, crop: Crop, count: int, size: int) -> bool:
    if memory is True and crop == "resized":
        raise DataError(
            "data.memory: true keeps images of one size, but `crop: resized` needs the whole images; "
            "write `memory: false` or `crop: shift`",
            key="data.resized-in-memory",
        )
    if memory == "auto":
        return crop == "shift" and count * 3 * size * size <= MEMORY_LIMIT
    return memory


def _split(files: Files, root: Path, size: int, crop: Crop, in_memory: bool) -> Split:
    paths, labels = paths_and_labels(files)
    images = ImageFiles.found(paths, size, crop, root)
    return Split(decode_cached(images) if in_memory else images, labels)
