"""A cache of decoded images on disk, so that a folder of images is decoded once and read quickly afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from qkd.data.decode import decode_images
from qkd.data.streaming import ImageFiles
from qkd.errors import RunError
from qkd.storage.atomic import write_atomic
from qkd.storage.cache import cache_folder

MIN_BYTES = 2**23
"""Bytes of decoded images below which nothing is cached: decoding them takes less than a second."""


def decode_cached(files: ImageFiles) -> Tensor:
    """All images decoded, (N, 3, size, size) uint8; read from ``$XDG_CACHE_HOME/qkd/decoded`` if they were decoded before.

    The name of a cached file holds a hash of what decides its content (the images' names, sizes and times, the size they
    are decoded to, the version of Pillow) and the checksum of the content; a damaged file is made again. Where nothing can
    be written, nothing is cached. Cached files may be deleted at any time.
    """
    if np.prod(files.shape) < MIN_BYTES:
        return decode_images(files.paths, files.size, files.crop)
    content = f"{files.files_hash} {files.shape} {files.crop} {PIL.__version__} 1"
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    folder = cache_folder() / "decoded"
    for path in folder.glob(f"{key}-*.npy"):
        cached = _load_intact(path, files.shape)
        if cached is not None:
            return cached
    images = decode_images(files.paths, files.size, files.crop)
    with contextlib.suppress(OSError, RunError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / key, lambda file: np.save(file, images.numpy()), name=lambda sha: f"{key}-{sha[:32]}.npy")
    return images


def _load_intact(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The images a file holds; None if its content is not what its name says, and then the file is removed.

    The file is mapped into memory, so processes that read the same one share it.
    """
    try:
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest()[:32] == path.stem.partition("-")[2]
        array = np.load(path, mmap_mode="c", allow_pickle=False) if intact else None
    except (OSError, ValueError):
        return None
    if array is None or array.shape != shape or array.dtype != np.uint8:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
        return None
    return torch.from_numpy(array)
