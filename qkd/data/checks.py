"""The check that a data set has enough images in every split, and at least two classes."""

from __future__ import annotations

from qkd.data.batches import Data
from qkd.errors import DataError

MIN_IMAGES = {"train": 2, "val": 1, "test": 1}  # batch norm cannot learn from a single image
MIN_CLASSES = 2
ADVICE = {
    "train": "hold back a smaller share of each class (data.val) or add images",
    "val": "the best epoch is chosen by validation accuracy: hold back a larger share of each class (data.val), give "
    "validation images, or add images",
    "test": "add test images",
}


def require_images(name: str, data: Data) -> Data:
    """Returns ``data`` unchanged. Raises DataError naming every split that holds too few images, or the only class."""
    counts = {split: len(getattr(data, split).labels) for split in MIN_IMAGES}
    found = ", ".join(f"{split} {count}" for split, count in counts.items())
    short = [split for split, least in MIN_IMAGES.items() if counts[split] < least]
    if short:
        each = "; ".join(f"{split} needs at least {MIN_IMAGES[split]}: {ADVICE[split]}" for split in short)
        raise DataError(f"data: {name}: too few images ({found}); {each}", key="data.too-few-images")
    present = data.train.labels.unique().tolist()
    if data.classes < MIN_CLASSES or len(present) < MIN_CLASSES:
        only = ", ".join(data.labels[label] for label in present)
        raise DataError(
            f"data: {name}: train holds images of a single class ({only}); classification needs at least {MIN_CLASSES}",
            key="data.single-class",
        )
    return data
