"""Enough: whether a data set has images to learn from, to choose the best weights with and to test with."""

from __future__ import annotations

from qkd.data.batches import Data
from qkd.errors import DataError

LEAST = {"train": 2, "val": 1, "test": 1}  # images; batch norm cannot learn from one
CLASSES = 2
ADVICE = {
    "train": "hold back a smaller share of each class (data.val) or add images",
    "val": "without any, no epoch can be told to be the best: hold back a larger share of each class (data.val), give images "
    "to choose with, or add images",
    "test": "add images to test with",
}


def require_images(name: str, data: Data) -> Data:
    """The data themselves. Raises DataError naming every split that holds too few images, or the one class there is."""
    counts = {split: len(getattr(data, split).labels) for split in LEAST}
    held = ", ".join(f"{split} {count}" for split, count in counts.items())
    short = [split for split, least in LEAST.items() if counts[split] < least]
    if short:
        each = "; ".join(f"{split} needs at least {LEAST[split]}: {ADVICE[split]}" for split in short)
        raise DataError(f"data: {name}: too few images ({held}); {each}")
    there = data.train.labels.unique().tolist()
    if data.classes < CLASSES or len(there) < CLASSES:
        only = ", ".join(data.labels[label] for label in there)
        raise DataError(
            f"data: {name}: train holds images of one class alone ({only}), so there is nothing to tell apart; "
            f"give at least {CLASSES} classes"
        )
    return data
