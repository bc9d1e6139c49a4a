"""Data sets by name -> images in memory -> batches."""

from __future__ import annotations

from collections.abc import Callable

from qkd.data.batches import Batch, Data, Split
from qkd.data.digits import digits
from qkd.data.fake import fake
from qkd.data.folder import folder

DATASETS: dict[str, Callable[..., Data]] = {"digits": digits, "folder": folder, "fake": fake}

__all__ = ["DATASETS", "Batch", "Data", "Split"]
