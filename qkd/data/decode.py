"""Decoding image files to uint8 arrays of one size."""

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

CHUNK = 256  # images per task of the thread pool: a task for each image would cost as much as reading a small one
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random resized crops: the usual values for ImageNet
MARGIN = 256 / 224  # how much larger an image is scaled than the centre crop that evaluation takes
EXAMPLES = 5  # things that a message lists by name

Crop = Literal["shift", "resized"]
"""How an image is brought to its size. ``shift``: scaled so that the shorter side fits, then centre-cropped. ``resized``: in
training a random resized crop; in evaluation scaled to 256/224 of the size, then centre-cropped."""


def read_image(path: str | Path, size: int, crop: Crop = "shift") -> np.ndarray:
    """Decode one image with the crop for evaluation, turned upright, RGB (3, size, size) uint8.

    Raises one of UNREADABLE if the file is no image of 8 bits per channel.
    """
    return center_crop(_open_rgb(path), size, crop)


def center_crop(image: Image.Image, size: int, crop: Crop = "shift") -> np.ndarray:
    """Scale an RGB image and crop its centre, (3, size, size) uint8; ``crop`` as for evaluation."""
    if crop == "resized":
        edge = round(size * MARGIN)
        image = ImageOps.fit(image, (edge, edge), Image.Resampling.BILINEAR)
        first = (edge - size) // 2
        image = image.crop((first, first, first + size, first + size))
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def random_crop(path: str | Path, size: int, numbers: Sequence[float]) -> np.ndarray:
    """A random resized crop of an image, RGB (3, size, size) uint8, decided by five ``numbers`` in 0..1.

    They are the crop's share of the area, its aspect ratio, its offsets from the left and from the top, and whether it is
    flipped left to right (below 0.5). Departure from torchvision's RandomResizedCrop: a crop that is too wide or too high
    is cut back, not drawn again.
    """
    image, (area, ratio, left, top, flip) = _open_rgb(path), numbers
    pixels_wanted = image.width * image.height * (AREA[0] + area * (AREA[1] - AREA[0]))
    aspect = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
    width = max(1, min(image.width, round(math.sqrt(pixels_wanted * aspect))))
    height = max(1, min(image.height, round(math.sqrt(pixels_wanted / aspect))))
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    part = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    pixels = np.asarray(part).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if flip < 0.5 else pixels


def _open_rgb(path: str | Path) -> Image.Image:
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits per channel (mode {opened.mode}), save it with 8")
        ImageOps.exif_transpose(opened, in_place=True)
        return opened.convert("RGB")


def describe_failure(path: str, error: Exception) -> str:
    """The path of a file that cannot be read, and why."""
    return f"{path} ({type(error).__name__}: {error})"


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow, and `read_image` and `random_crop` with it, raise for a file that is no image."""


def decode_images(paths: Sequence[str], size: int, crop: Crop = "shift") -> Tensor:
    """Decode images with the crop for evaluation, (N, 3, size, size) uint8, in threads.

    Raises DataError naming the files that cannot be read.
    """
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def fill(start: int) -> list[str]:
        broken = []
        for at in range(start, min(start + CHUNK, len(paths))):
            try:
                images[at] = read_image(paths[at], size, crop)
            except UNREADABLE as error:
                broken.append(describe_failure(paths[at], error))
        return broken

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        broken = [each for some in threads.map(fill, range(0, len(paths), CHUNK)) for each in some]
    if broken:
        raise unreadable_images(broken)
    return torch.from_numpy(images)


def unreadable_images(broken: Sequence[str]) -> DataError:
    """The error for files that cannot be read; ``broken`` holds the path and the reason of each."""
    return DataError(f"{len(broken)} unreadable image(s): {first_few(broken)}", key="data.unreadable-images")


def first_few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:EXAMPLES]) or "nothing"
    return f"{shown} and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else shown
