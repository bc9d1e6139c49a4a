"""Decoded: images that were decoded once are kept as bytes, so that the next start takes a moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from qkd.data.decode import decode
from qkd.data.streaming import ImageFiles
from qkd.errors import RunError
from qkd.storage.atomic import write_atomic
from qkd.storage.cache import cache_folder

WORTH = 2**23  # bytes; what is smaller is decoded in a moment


def decode_cached(pictures: ImageFiles) -> Tensor:
    """All images decoded, (N, 3, size, size) uint8; from ``$XDG_CACHE_HOME/qkd/decoded`` where they were before.

    A file there is found by what decides its content: the images' names, sizes and times, the size they are brought to and
    the version of the library that decodes. Its own name holds the checksum of what is in it; one that is damaged is made
    again. Where nothing can be written, nothing is kept. Any of them may be deleted at any time.
    """
    if np.prod(pictures.shape) < WORTH:
        return decode(pictures.paths, pictures.size, pictures.crop)
    facts = f"{pictures.stamp} {pictures.shape} {pictures.crop} {PIL.__version__} 1"
    key = hashlib.sha256(facts.encode()).hexdigest()[:32]
    folder = cache_folder() / "decoded"
    for path in folder.glob(f"{key}-*.npy"):
        kept = _kept(path, pictures.shape)
        if kept is not None:
            return kept
    images = decode(pictures.paths, pictures.size, pictures.crop)
    with contextlib.suppress(OSError, RunError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / key, lambda file: np.save(file, images.numpy()), name=lambda sha: f"{key}-{sha[:32]}.npy")
    return images


def _kept(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """What a file holds; None if that is not what its name says. Processes that read the same one share its memory."""
    try:
        with path.open("rb") as file:
            sound = hashlib.file_digest(file, "sha256").hexdigest()[:32] == path.stem.partition("-")[2]
        array = np.load(path, mmap_mode="c", allow_pickle=False) if sound else None
    except (OSError, ValueError):
        return None
    if array is None or array.shape != shape or array.dtype != np.uint8:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
        return None
    return torch.from_numpy(array)
