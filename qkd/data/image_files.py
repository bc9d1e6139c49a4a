"""Listing the image files of a folder by class. Other files in it are refused, except for those of CLUTTER."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qkd.data.decode import first_few
from qkd.errors import DataError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
CLUTTER = ("Thumbs.db", "desktop.ini")  # left behind by file managers

Files = dict[str, list[str]]
"""The paths of the images of each class, by the name of the class."""


def list_images(folder: Path, expected: str = "", *, ignored: str = "") -> Files:
    """The images of one split, ``folder/<class>/...``, sorted by name. Files that end in ``ignored`` are left out.

    Raises DataError for a missing folder (``expected`` is what the message says should be there), for other files in it,
    and for a class without images.
    """
    if not folder.is_dir():
        raise _missing_folder(folder, expected)
    found, strays = _images_by_class(folder, ignored)
    empty = [label for label, files in found.items() if not files]
    wrong = (
        [f"not an image in a folder of its class: {first_few(strays)} (known: {' '.join(SUFFIXES)})"] if strays else []
    )
    wrong += [f"no images of class {first_few(empty)}; remove the folder or fill it"] if empty else []
    if not found and not strays:
        wrong = [f"no class folders in it; expected: {folder}/<class>/ with images"]
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}", key="data.not-a-class-folder")
    return found


def _missing_folder(folder: Path, expected: str) -> DataError:
    root = folder.parent
    found = f"{root} does not exist"
    if root.is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        found = f"{root} holds {first_few(there)}{nearest(folder.name, there)}"
    expected = expected or f"{root}/train/<class>/ and {root}/test/<class>/"
    return DataError(f"{folder}: no such folder: {found}; expected: {expected}", key="data.missing-folder")


def _images_by_class(folder: Path, ignored: str) -> tuple[Files, list[str]]:
    """The images of each class, and the files that are neither images in a class folder nor clutter."""
    found: Files = {}
    strays: list[str] = []
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(here).relative_to(folder).parts
        if not inside:
            found = {name: [] for name in folders}
        for name in sorted(names):
            if name.startswith(".") or name in CLUTTER or (ignored and name.endswith(ignored)):
                continue
            if inside and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a Path for each takes seconds
                found[inside[0]].append(os.path.join(here, name))  # noqa: PTH118
            else:
                strays.append("/".join((*inside, name)))
    return found, strays


def require_same_classes(root: Path, splits: dict[str, Files]) -> None:
    """Raises DataError for a split whose classes are not those of train."""
    for name, files in splits.items():
        missing = sorted(set(splits["train"]) - set(files))
        extra = sorted(set(files) - set(splits["train"]))
        if missing or extra:
            parts = [f"{name} lacks {first_few(missing)}"] if missing else []
            parts += [f"only {name} has {first_few(extra)}"] if extra else []
            raise DataError(
                f"{root}: train and {name} hold different classes: {'; '.join(parts)}", key="data.differing-classes"
            )


def limit_per_class(files: Files, limit: int | None) -> Files:
    """At most ``limit`` images in all (but one of each class), equally many of each class, spread over the sorted names."""
    if limit is None:
        return files
    most = max(1, limit // len(files))
    chosen = {label: np.linspace(0, len(paths) - 1, min(most, len(paths))).round() for label, paths in files.items()}
    return {label: [paths[int(i)] for i in chosen[label]] for label, paths in files.items()}


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file. Raises DataError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path}: {reason}", key="data.unreadable-list") from error


def keep_listed(files: Files, names: Path, folder: Path) -> Files:
    """The images that a text file names, one a line: ``cat/0001.png`` below ``folder``; ``#`` begins a comment.

    Raises DataError for a name that is not among the images or is listed twice, and for a class without any image left.
    """
    wanted = [name for line in read_lines(names) if (name := line.partition("#")[0].strip())]
    known = {_name_below(folder, path) for paths in files.values() for path in paths}
    unknown = [line for line in wanted if line not in known]
    if unknown:
        near = nearest(unknown[0], known)
        raise DataError(f"{names}: not in {folder}: {first_few(unknown)}{near}", key="data.unknown-name-in-list")
    chosen = set(wanted)
    if len(chosen) < len(wanted):
        twice = sorted({line for line in wanted if wanted.count(line) > 1})
        raise DataError(f"{names}: listed twice: {first_few(twice)}", key="data.name-listed-twice")
    kept = {label: [path for path in paths if _name_below(folder, path) in chosen] for label, paths in files.items()}
    empty = [label for label, paths in kept.items() if not paths]
    if empty:
        raise DataError(f"{names}: no image of class {first_few(empty)}", key="data.class-missing-in-list")
    return kept


def _name_below(folder: Path, path: str) -> str:
    return Path(path).relative_to(folder).as_posix()


def paths_and_labels(files: Files) -> tuple[tuple[str, ...], Tensor]:
    """All paths, class by class, and the number of the class of each, (N,) int64."""
    everything = tuple(path for paths in files.values() for path in paths)
    return everything, torch.tensor([label for label, paths in enumerate(files.values()) for _ in paths])
