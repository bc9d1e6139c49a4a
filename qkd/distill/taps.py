"""Tap: the one address of a tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LOGITS = "logits"
SHARED = "shared"  # the part name under which an exchange records what the members hold in common


class Tap(NamedTuple):
    """Where a tensor was produced: by which part, after which of its stages. ``logits`` is simply the last stage."""

    part: str
    stage: str = LOGITS

    def __str__(self) -> str:
        return f"{self.part}.{self.stage}"


Outputs = dict[Tap, Tensor]
