"""What networks must know of the data."""

from __future__ import annotations

from typing import NamedTuple


class DataSpec(NamedTuple):
    """What networks must know of the data."""

    shape: tuple[int, int, int]  # channels, height, width
    classes: int
