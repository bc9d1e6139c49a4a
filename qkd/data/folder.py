"""A folder of images, one folder per class: ``root/train/<class>/*.png`` and ``root/test/<class>/*.png``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from qkd.data.batches import Data, Split, channel_statistics
from qkd.data.decode import Crop
from qkd.data.decode_cache import decode_cached
from qkd.data.image_files import Files, at_most, keep_listed, list_images, paths_and_labels, same_classes, stamp
from qkd.data.split import stratified_split
from qkd.data.streaming import ImageFiles
from qkd.errors import DataError
from qkd.options import Bounds, Count

Made = TypeVar("Made")
Memory = Literal["auto", True, False]
HELD = Annotated[float, Bounds(at_least=0, below=1)]
LIMIT = 2**32
"""Bytes of decoded images up to which a data set lies in memory by itself: 4 GiB, 350 000 images of 64 x 64."""


def folder(
    *,
    root: Path,
    size: Count = 32,
    val: HELD = 0.1,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
    crop: Crop = "shift",
    memory: Memory = "auto",
) -> Data:
    """All images below ``root`` as RGB of ``size`` x ``size``, in memory or decoded by worker processes as they are needed.

    Without a folder ``root/val`` the share ``val`` of every class of the training images is held back, always the same.

    * ``augment``: training images are changed. ``crop``: ``shift`` scales an image to fit, cuts out its middle and shifts
      that; ``resized`` takes another part of the image each time, as is usual for ImageNet, and needs the files themselves.
    * ``memory``: auto keeps up to 4 GiB of decoded images in memory. What is decoded is the same either way.
    * ``limit`` keeps at most so many images of each folder, the same number of every class, always the same ones; ``only``
      keeps the training images that a text file names, a line each (``cat/0001.png``).

    Raises DataError for a missing folder, an empty class, classes that differ between the folders, and files that cannot be
    read, by name.
    """
    root = Path(root)
    names = [name for name in ("train", "val", "test") if name != "val" or (root / "val").is_dir()]
    splits = _each(names, lambda name: list_images(root / name))
    same_classes(root, splits)
    if only is not None:
        splits["train"] = keep_listed(splits["train"], only, root / "train")
    splits = {name: at_most(files, limit) for name, files in splits.items()}
    return data_of(splits, root, size=size, val=val, augment=augment, crop=crop, memory=memory)


def data_of(
    splits: dict[str, Files],
    root: Path,
    *,
    size: int,
    val: float,
    augment: bool,
    crop: Crop,
    memory: Memory,
    labels: tuple[str, ...] | None = None,
    normal: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Data:
    """The listed images as Data; without a split ``val`` a share of train is held back.

    ``normal`` is the mean and the standard deviation, where they need not be measured.
    """
    kept = _in_memory(memory, crop, sum(len(some) for files in splits.values() for some in files.values()), size)
    found = _each(splits, lambda name: _split(splits[name], root, size, crop, kept))
    if "val" not in found:
        found["train"], found["val"] = _hold_back(found["train"], val, root)
    mean, std = normal or channel_statistics(found["train"].images)
    how = "resized+flip" if crop == "resized" else "crop+flip"
    names = labels or tuple(splits["train"])
    return Data(found["train"], found["val"], found["test"], names, mean, std, how if augment else "none")  # type: ignore[arg-type]


def _each(names: Iterable[str], make: Callable[[str], Made]) -> dict[str, Made]:
    """What is made of each split. Raises DataError with what is wrong with any of them."""
    found, wrong = {}, []
    for name in names:
        try:
            found[name] = make(name)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("; ".join(wrong))
    return found


def _in_memory(memory: Memory, crop: Crop, count: int, size: int) -> bool:
    if memory is True and crop == "resized":
        raise DataError(
            "data.memory: true keeps images of one size, of which `crop: resized` can cut no parts; "
            "write `memory: false` or `crop: shift`"
        )
    if memory == "auto":
        return crop == "shift" and count * 3 * size * size <= LIMIT
    return memory


def _split(files: Files, root: Path, size: int, crop: Crop, kept: bool) -> Split:
    paths, labels = paths_and_labels(files)
    pictures = ImageFiles(paths, size, crop, stamp(paths, root))
    return Split(decode_cached(pictures) if kept else pictures, labels)


def _hold_back(split: Split, share: float, root: Path) -> tuple[Split, Split]:
    rest, held = stratified_split(split.labels, (1 - share, share), seed=0)
    if isinstance(split.images, ImageFiles):
        whole = split.images
        parts = [tuple(whole.paths[i] for i in ids.tolist()) for ids in (rest, held)]
        images = [ImageFiles(paths, whole.size, whole.crop, stamp(paths, root)) for paths in parts]
        return Split(images[0], split.labels[rest]), Split(images[1], split.labels[held])
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held], split.labels[held])
