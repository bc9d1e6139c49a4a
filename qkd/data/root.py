"""The folder in which data sets with a fixed layout (CIFAR, ImageNet, ...) are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from qkd.errors import DataError
from qkd.storage.cache import cache_folder


def data_root(root: Path | None) -> Path:
    """``root``, or ``$QKD_DATA``, or ``$XDG_CACHE_HOME/qkd/data`` (by default ``~/.cache/qkd/data``)."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("QKD_DATA"):
        return Path(os.environ["QKD_DATA"]).expanduser()
    return cache_folder() / "data"


def missing_data(what: str, folder: Path, expected: str) -> DataError:
    """The error for a data set ``what`` whose folder or file ``expected`` is not in ``folder``."""
    return DataError(
        f"{what}: no {expected} in {folder}; put it there, name its folder with data.root or QKD_DATA, "
        f"or write `download: true` to fetch it",
        key="data.missing-files",
    )
