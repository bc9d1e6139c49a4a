"""ImageNet and Tiny ImageNet, from folders as they are handed out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qkd.data.batches import Data
from qkd.data.decode import first_few
from qkd.data.folder import Memory, data_of
from qkd.data.image_files import Files, at_most, keep_listed, list_images, same_classes
from qkd.data.root import data_root
from qkd.errors import DataError
from qkd.options import Bounds, Count

Held = Annotated[float, Bounds(above=0, below=1)]
TINY, ANNOTATIONS = "tiny-imagenet-200", "val_annotations.txt"
NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what networks trained on ImageNet expect


def tiny_imagenet(
    *,
    root: Path | None = None,
    val: Held = 0.1,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
    memory: Memory = "auto",
) -> Data:
    """100000 colour images of 64 x 64 in 200 classes, and 10000 to test with: those of ``val``, as ``test`` has no labels.

    From ``tiny-imagenet-200`` in ``root`` (`qkd.data.root.data_root`). The share ``val`` of each class of the training images
    is held back to choose with; the other options are those of `folder`. Raises DataError.
    """
    base = _found("tiny_imagenet", data_root(root), (TINY,), (Path("train"), Path("val") / ANNOTATIONS), TINY)
    train = list_images(base / "train", ignored="_boxes.txt")
    splits = {"train": train, "test": _annotated(base / "val", list(train))}
    if only is not None:
        splits["train"] = keep_listed(train, only, base / "train")
    splits = {name: at_most(files, limit) for name, files in splits.items()}
    return data_of(splits, base, size=64, val=val, augment=augment, crop="shift", memory=memory)


def imagenet(
    *,
    root: Path | None = None,
    size: Count = 224,
    val: Held = 0.02,
    augment: bool = True,
    limit: Count | None = None,
    only: Path | None = None,
) -> Data:
    """1.28 million photographs in 1000 classes, and 50000 to test with: those of ``val``, as ``test`` has no labels.

    From ``train/<wnid>/`` and ``val/<wnid>/`` in ``root`` or its folder ``imagenet``, decoded by worker processes as they
    are needed. Training sees a random part of each image, mirrored or not, evaluation the middle of it, after the shorter
    side was scaled to ``size`` x 256 / 224. The share ``val`` of each class is held back to choose with. Raises DataError.
    """
    base = _found("imagenet", data_root(root), ("imagenet", "ILSVRC2012"), (Path("train"), Path("val")), "imagenet")
    expected = f"{base}/train/<wnid>/ and {base}/val/<wnid>/"
    splits = {"train": list_images(base / "train", expected), "test": list_images(base / "val", expected)}
    same_classes(base, splits)
    if only is not None:
        splits["train"] = keep_listed(splits["train"], only, base / "train")
    splits = {name: at_most(files, limit) for name, files in splits.items()}
    settings = {"size": size, "val": val, "augment": augment, "normal": NORMAL}
    return data_of(splits, base, crop="resized", memory=False, **settings)  # type: ignore[arg-type]


def _found(what: str, base: Path, folders: tuple[str, ...], inside: tuple[Path, ...], expected: str) -> Path:
    """The folder in which all that is needed lies. Raises DataError saying what is possible."""
    for folder in (base, *(base / name for name in folders)):
        if all((folder / each).exists() for each in inside):
            return folder
    needed = " and ".join(str(each) for each in inside)
    raise DataError(
        f"{what}: no {expected} in {base}; unpack it there, so that {base / expected} holds {needed}, "
        f"or name its folder with data.root or QKD_DATA (it is never fetched)"
    )


def _annotated(folder: Path, classes: list[str]) -> Files:
    """The images of ``val``, whose classes stand in a text file: name, class and box, a line each. Raises DataError."""
    path = folder / ANNOTATIONS
    found: Files = {label: [] for label in classes}
    try:
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error.strerror if isinstance(error, OSError) else 'is no text'}") from error
    for number, words in enumerate(lines, 1):
        if len(words) < 2 or words[1] not in found:
            raise DataError(f"{path}:{number}: expected an image and one of the classes of train, found {words[:2]}")
        found[words[1]].append(str(folder / "images" / words[0]))
    empty = [label for label, some in found.items() if not some]
    if empty:
        raise DataError(f"{path}: no images of class {first_few(empty)}")
    return found
