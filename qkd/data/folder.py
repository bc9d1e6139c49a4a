"""A folder of images, one folder per class: ``root/train/<class>/*.png`` and ``root/test/<class>/*.png``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageOps

from qkd.bounds import Bounds, Count
from qkd.data.batches import Augmentation, Data, Split, measure
from qkd.data.digits import divide
from qkd.errors import DataError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
CLUTTER = ("Thumbs.db", "desktop.ini")
SHOWN = 5
CHUNK = 256  # images per task: a task for each would cost as much as reading a small one

Files = dict[str, list[str]]  # class -> its images


def folder(
    *,
    root: Path,
    size: Count = 32,
    val: Annotated[float, Bounds(at_least=0, below=1)] = 0.1,
    augment: bool = True,
    limit: Count | None = None,
) -> Data:
    """All images below ``root``, each scaled and cropped in the middle to ``size`` x ``size``, as RGB in memory.

    Without a folder ``root/val`` the share ``val`` of every class of the training images is held back, always the same.
    ``augment`` shifts and flips images for training. ``limit`` keeps at most so many images of each folder, the same
    number of every class. Raises DataError for a missing folder, an empty class, classes that differ between the
    folders, and files that cannot be read, by name.
    """
    root = Path(root)
    listed = {
        name: _listed(root, name) for name in ("train", "val", "test") if name != "val" or (root / "val").is_dir()
    }
    _same_classes(root, listed)
    names = tuple(listed["train"])
    splits = {name: _decode(_at_most(files, limit), size) for name, files in listed.items()}
    if "val" not in splits:
        splits["train"], splits["val"] = _hold_back(splits["train"], val)
    mean, std = measure(splits["train"].images)
    how: Augmentation = "crop+flip" if augment else "none"
    return Data(splits["train"], splits["val"], splits["test"], names, mean, std, how)


def _listed(root: Path, name: str) -> Files:
    """The images of one split; everything below it is either an image, clutter, or a mistake."""
    place = root / name
    if not place.is_dir():
        raise _missing(root, name)
    found, strays = _walk(place)
    if strays:
        raise DataError(f"{place}: not an image in a folder of its class: {_few(strays)} (known: {' '.join(SUFFIXES)})")
    if not found:
        raise DataError(f"{place}: no class folders in it; expected: {place}/<class>/ with images")
    empty = [label for label, files in found.items() if not files]
    if empty:
        raise DataError(f"{place}: no images of class {_few(empty)}; remove the folder or fill it")
    return found


def _missing(root: Path, name: str) -> DataError:
    found = f"{root} does not exist"
    if root.is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        found = f"{root} holds {_few(there)}{nearest(name, there)}"
    return DataError(
        f"{root / name}: no such folder: {found}; expected: {root}/train/<class>/ and {root}/test/<class>/"
    )


def _walk(place: Path) -> tuple[Files, list[str]]:
    """The images of each class, in order of name, and what is neither image nor clutter."""
    found: Files = {}
    strays: list[str] = []
    for folder, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(place).parts
        if not inside:
            found = {name: [] for name in folders}
        for name in sorted(names):
            if name.startswith(".") or name in CLUTTER:
                continue
            if inside and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a Path for each takes seconds
                found[inside[0]].append(os.path.join(folder, name))  # noqa: PTH118
            else:
                strays.append("/".join((*inside, name)))
    return found, strays


def _same_classes(root: Path, listed: dict[str, Files]) -> None:
    for name, files in listed.items():
        missing = sorted(set(listed["train"]) - set(files))
        extra = sorted(set(files) - set(listed["train"]))
        if missing or extra:
            parts = [f"{name} lacks {_few(missing)}"] if missing else []
            parts += [f"only {name} has {_few(extra)}"] if extra else []
            raise DataError(f"{root}: train and {name} hold different classes: {'; '.join(parts)}")


def _at_most(files: Files, limit: int | None) -> Files:
    """An equal number of each class, so that they are at most ``limit`` together; spread over the sorted names."""
    if limit is None:
        return files
    each = max(1, limit // len(files))
    places = {label: np.linspace(0, len(some) - 1, min(each, len(some))).round() for label, some in files.items()}
    return {label: [some[int(i)] for i in places[label]] for label, some in files.items()}


def _decode(files: Files, size: int) -> Split:
    paths = [path for some in files.values() for path in some]
    labels = [label for label, some in enumerate(files.values()) for _ in some]
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def fill(start: int) -> list[str]:
        wrong = []
        for at in range(start, min(start + CHUNK, len(paths))):
            try:
                images[at] = read(paths[at], size)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
                wrong.append(f"{paths[at]} ({type(error).__name__}: {error})")
        return wrong

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        broken = [what for some in threads.map(fill, range(0, len(paths), CHUNK)) for what in some]
    if broken:
        raise DataError(f"{len(broken)} unreadable image(s): {_few(broken)}")
    return Split(torch.from_numpy(images), torch.tensor(labels))


def read(path: str | Path, size: int) -> np.ndarray:
    """One image, upright, as RGB (3, size, size) uint8. Raises OSError or ValueError when that cannot be done."""
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits per channel (mode {opened.mode})")
        ImageOps.exif_transpose(opened, in_place=True)
        image = opened.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _hold_back(split: Split, share: float) -> tuple[Split, Split]:
    rest, held = divide(split.labels, (1 - share, share), seed=0)
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held], split.labels[held])


def _few(things: Sequence[str]) -> str:
    shown = ", ".join(things[:SHOWN]) or "nothing"
    return f"{shown} and {len(things) - SHOWN} more" if len(things) > SHOWN else shown
