"""Listing: which image files a folder holds, class by class; everything else in it is clutter or a mistake."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qkd.data.decode import first_few
from qkd.errors import DataError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
CLUTTER = ("Thumbs.db", "desktop.ini")

Files = dict[str, list[str]]  # class -> its images


def list_images(place: Path, expected: str = "", *, ignored: str = "") -> Files:
    """The images of one split, ``place/<class>/...``, in order of name. Raises DataError for whatever else is there.

    ``expected`` says what should be there where the folder is missing; files that end in ``ignored`` are passed over.
    """
    if not place.is_dir():
        raise _missing(place, expected)
    found, strays = _walk(place, ignored)
    empty = [label for label, files in found.items() if not files]
    wrong = (
        [f"not an image in a folder of its class: {first_few(strays)} (known: {' '.join(SUFFIXES)})"] if strays else []
    )
    wrong += [f"no images of class {first_few(empty)}; remove the folder or fill it"] if empty else []
    if not found and not strays:
        wrong = [f"no class folders in it; expected: {place}/<class>/ with images"]
    if wrong:
        raise DataError(f"{place}: {'; '.join(wrong)}")
    return found


def _missing(place: Path, expected: str) -> DataError:
    root = place.parent
    found = f"{root} does not exist"
    if root.is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        found = f"{root} holds {first_few(there)}{nearest(place.name, there)}"
    expected = expected or f"{root}/train/<class>/ and {root}/test/<class>/"
    return DataError(f"{place}: no such folder: {found}; expected: {expected}")


def _walk(place: Path, ignored: str) -> tuple[Files, list[str]]:
    """The images of each class, and what is neither image nor clutter."""
    found: Files = {}
    strays: list[str] = []
    for folder, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(place).parts
        if not inside:
            found = {name: [] for name in folders}
        for name in sorted(names):
            if name.startswith(".") or name in CLUTTER or (ignored and name.endswith(ignored)):
                continue
            if inside and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a Path for each takes seconds
                found[inside[0]].append(os.path.join(folder, name))  # noqa: PTH118
            else:
                strays.append("/".join((*inside, name)))
    return found, strays


def same_classes(root: Path, splits: dict[str, Files]) -> None:
    """Raises DataError where a split holds other classes than train."""
    for name, files in splits.items():
        missing = sorted(set(splits["train"]) - set(files))
        extra = sorted(set(files) - set(splits["train"]))
        if missing or extra:
            parts = [f"{name} lacks {first_few(missing)}"] if missing else []
            parts += [f"only {name} has {first_few(extra)}"] if extra else []
            raise DataError(f"{root}: train and {name} hold different classes: {'; '.join(parts)}")


def at_most(files: Files, limit: int | None) -> Files:
    """An equal number of each class, so that they are at most ``limit`` together; spread over the sorted names."""
    if limit is None:
        return files
    each = max(1, limit // len(files))
    places = {label: np.linspace(0, len(some) - 1, min(each, len(some))).round() for label, some in files.items()}
    return {label: [some[int(i)] for i in places[label]] for label, some in files.items()}


def keep_listed(files: Files, names: Path, place: Path) -> Files:
    """Those of the images that a text file names, a line each: ``cat/0001.png`` below ``place``, ``#`` begins a comment.

    Raises DataError for a name that is not there, or there twice, and for a class of which nothing is left.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in names.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names}: {error.strerror if isinstance(error, OSError) else 'is no text'}") from error
    wanted = [line for line in lines if line]
    known = {Path(path).relative_to(place).as_posix() for some in files.values() for path in some}
    unknown = [line for line in wanted if line not in known]
    if unknown:
        raise DataError(f"{names}: not in {place}: {first_few(unknown)}{nearest(unknown[0], known)}")
    chosen = set(wanted)
    if len(chosen) < len(wanted):
        raise DataError(
            f"{names}: named twice: {first_few(sorted({line for line in wanted if wanted.count(line) > 1}))}"
        )
    kept = {c: [p for p in some if Path(p).relative_to(place).as_posix() in chosen] for c, some in files.items()}
    empty = [label for label, some in kept.items() if not some]
    if empty:
        raise DataError(f"{names}: no image of class {first_few(empty)}")
    return kept


def paths_and_labels(files: Files) -> tuple[tuple[str, ...], Tensor]:
    """All paths, class by class, and their labels (N,)."""
    paths = tuple(path for some in files.values() for path in some)
    return paths, torch.tensor([label for label, some in enumerate(files.values()) for _ in some])


def stamp(paths: Sequence[str], root: Path) -> str:
    """A hash (hex) of what the files are called below ``root``, how large they are and when they were written."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = os.stat(path)  # noqa: PTH116 - a Path for each takes seconds
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        digest.update(f"{path.removeprefix(str(root))} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
