"""Image classification data sets: found by name, held in memory or in files, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qkd.data.augment import ExtraAugmentations
from qkd.data.batches import Data, Split
from qkd.data.checks import require_images
from qkd.data.digits import digits
from qkd.data.fake import fake
from qkd.data.folder import folder
from qkd.data.huggingface import huggingface
from qkd.data.imagenet import imagenet, tiny_imagenet
from qkd.data.user_dataset import user_data
from qkd.data.vision import cifar10, cifar100, fashion_mnist, svhn
from qkd.errors import DataError
from qkd.options import is_user_code, look_up
from qkd.tasks.batch import Batch

DATASETS: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "folder": folder,
    "fake": fake,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "svhn": svhn,
    "tiny_imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "huggingface": huggingface,
}


def load(name: str, options: Mapping[str, Any]) -> Data:
    """The data set of that name, or of ``file.py:Name``, made with its options.

    Raises DataError for an unknown name, data that are missing or unreadable, and a split that holds too few images.
    """
    make = look_up(name, DATASETS, what="data set", error=DataError)
    return require_images(name, user_data(name, make, options) if is_user_code(name) else make(**options))


__all__ = ["DATASETS", "Batch", "Data", "ExtraAugmentations", "Split", "load"]
