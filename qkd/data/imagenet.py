"""ImageNet and Tiny ImageNet, from folders as their archives unpack."""

from __future__ import annotations

from pathlib import Path

from qkd.data.batches import Data
from qkd.data.decode import first_few
from qkd.data.folder import Memory, data_from_files
from qkd.data.image_files import (
    Files,
    keep_listed,
    limit_per_class,
    list_images,
    read_lines,
    require_same_classes,
)
from qkd.data.root import data_root
from qkd.data.split import ValidationShare
from qkd.errors import DataError
from qkd.options import Count

TINY, ANNOTATIONS = "tiny-imagenet-200", "val_annotations.txt"
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation per channel with which networks trained on ImageNet are usually fed."""


def tiny_imagenet(
    *,
    root: Path | None = None,
    val: ValidationShare = 0.1,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
    memory: Memory = "auto",
) -> Data:
    """Tiny ImageNet: 100000 training and 10000 test images, 64 x 64 in colour, 200 classes.

    From ``tiny-imagenet-200`` in ``root`` (`qkd.data.root.data_root`). The test images are those of its folder ``val``,
    since those of ``test`` have no labels. The share ``val`` of each class of the training images is held back for
    validation; the other options are those of `folder`. Raises DataError.
    """
    base = _locate("tiny_imagenet", data_root(root), (TINY,), (Path("train"), Path("val") / ANNOTATIONS), TINY)
    train = list_images(base / "train", ignored="_boxes.txt")
    splits = {"train": train, "test": _images_of_annotations(base / "val", list(train))}
    if only is not None:
        splits["train"] = keep_listed(train, only, base / "train")
    splits = {name: limit_per_class(files, limit) for name, files in splits.items()}
    return data_from_files(splits, base, size=64, val=val, augment=augment, crop="shift", memory=memory)


def imagenet(
    *,
    root: Path | None = None,
    size: Count = 224,
    val: ValidationShare = 0.02,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
) -> Data:
    """ImageNet (ILSVRC 2012): 1.28 million training and 50000 test images in colour, 1000 classes.

    From ``train/<wnid>/`` and ``val/<wnid>/`` in ``root`` or its folder ``imagenet``, decoded by worker processes as they
    are needed. The test images are those of ``val``, since those of ``test`` have no labels. Training takes random resized
    crops, flipped or not, evaluation the centre crop after the shorter side was scaled to ``size`` x 256 / 224. The share
    ``val`` of each class of the training images is held back for validation. Raises DataError.
    """
    base = _locate("imagenet", data_root(root), ("imagenet", "ILSVRC2012"), (Path("train"), Path("val")), "imagenet")
    expected = f"{base}/train/<wnid>/ and {base}/val/<wnid>/"
    splits = {"train": list_images(base / "train", expected), "test": list_images(base / "val", expected)}
    require_same_classes(base, splits)
    if only is not None:
        splits["train"] = keep_listed(splits["train"], only, base / "train")
    splits = {name: limit_per_class(files, limit) for name, files in splits.items()}
    settings = {"size": size, "val": val, "augment": augment, "statistics": STATISTICS}
    return data_from_files(splits, base, crop="resized", memory=False, **settings)  # type: ignore[arg-type]


def _locate(what: str, base: Path, folders: tuple[str, ...], inside: tuple[Path, ...], expected: str) -> Path:
    """``base`` or the first of its ``folders`` that holds everything in ``inside``. Raises DataError if there is none."""
    for folder in (base, *(base / name for name in folders)):
        if all((folder / each).exists() for each in inside):
            return folder
    needed = " and ".join(str(each) for each in inside)
    raise DataError(
        f"{what}: no {expected} in {base}; unpack it there, so that {base / expected} holds {needed}, "
        f"or name its folder with data.root or QKD_DATA (it is never downloaded)",
        key="data.missing-files",
    )


def _images_of_annotations(folder: Path, classes: list[str]) -> Files:
    """The images of ``val``, whose classes are listed in a text file: name, class and box on each line. Raises DataError."""
    path = folder / ANNOTATIONS
    found: Files = {label: [] for label in classes}
    for number, words in enumerate((line.split("\t") for line in read_lines(path) if line.strip()), 1):
        if len(words) < 2 or words[1] not in found:
            raise DataError(
                f"{path}:{number}: expected an image and one of the classes of train, found {words[:2]}",
                key="data.invalid-annotation",
            )
        found[words[1]].append(str(folder / "images" / words[0]))
    empty = [label for label, some in found.items() if not some]
    if empty:
        raise DataError(f"{path}: no images of class {first_few(empty)}", key="data.class-missing-in-list")
    return found
