"""Decode: image files -> bytes of one size."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from qkd.errors import DataError

CHUNK = 256  # images per task: a task for each would cost as much as reading a small one
AREA, RATIO, MARGIN = (0.08, 1.0), (3 / 4, 4 / 3), 256 / 224  # the field's for ImageNet
SHOWN = 5

Crop = Literal["shift", "resized"]
"""How an image comes to its size. ``shift``: scaled to fit, the middle cut out. ``resized``: in training a random part of
it, scaled; in evaluation the middle of the image, which was scaled a seventh larger."""


def read(path: str | Path, size: int, crop: Crop = "shift") -> np.ndarray:
    """One image as it is evaluated, upright, RGB (3, size, size) uint8. Raises OSError or ValueError where it cannot be."""
    return center_crop(_opened(path), size, crop)


def center_crop(image: Image.Image, size: int, crop: Crop = "shift") -> np.ndarray:
    """The middle of an RGB image, (3, size, size) uint8."""
    if crop == "resized":
        edge = round(size * MARGIN)
        image = ImageOps.fit(image, (edge, edge), Image.Resampling.BILINEAR)
        first = (edge - size) // 2
        image = image.crop((first, first, first + size, first + size))
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def random_crop(path: str | Path, size: int, numbers: Sequence[float]) -> np.ndarray:
    """A random part of an image, scaled to RGB (3, size, size) uint8, as five numbers of 0..1 say.

    Its share of the area, its ratio, where it begins from the left and from the top, and whether it is mirrored.
    Departure from torchvision's RandomResizedCrop: a part that is too wide or too high is cut back, not drawn again.
    """
    image, (area, ratio, left, top, flip) = _opened(path), numbers
    wanted = image.width * image.height * (AREA[0] + area * (AREA[1] - AREA[0]))
    shape = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
    width = max(1, min(image.width, round(math.sqrt(wanted * shape))))
    height = max(1, min(image.height, round(math.sqrt(wanted / shape))))
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    part = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    pixels = np.asarray(part).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if flip < 0.5 else pixels


def _opened(path: str | Path) -> Image.Image:
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits per channel (mode {opened.mode}), save it with 8")
        ImageOps.exif_transpose(opened, in_place=True)
        return opened.convert("RGB")


def wrong(path: str, error: Exception) -> str:
    """What to say of a file that is no image."""
    return f"{path} ({type(error).__name__}: {error})"


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises


def decode(paths: Sequence[str], size: int, crop: Crop = "shift") -> Tensor:
    """All images as they are evaluated, (N, 3, size, size) uint8. Raises DataError naming those that cannot be read."""
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def fill(start: int) -> list[str]:
        broken = []
        for at in range(start, min(start + CHUNK, len(paths))):
            try:
                images[at] = read(paths[at], size, crop)
            except UNREADABLE as error:
                broken.append(wrong(paths[at], error))
        return broken

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        broken = [what for some in threads.map(fill, range(0, len(paths), CHUNK)) for what in some]
    if broken:
        raise unreadable(broken)
    return torch.from_numpy(images)


def unreadable(broken: Sequence[str]) -> DataError:
    return DataError(f"{len(broken)} unreadable image(s): {first_few(broken)}")


def first_few(things: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(things[:SHOWN]) or "nothing"
    return f"{shown} and {len(things) - SHOWN} more" if len(things) > SHOWN else shown
