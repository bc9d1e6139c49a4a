"""Taps: the addresses of tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LOGITS = "logits"
SHARED = "shared"  # the part name under which an exchange records what its members hold in common


class Tap(NamedTuple):
    """The tensor that a part gives after one of its stages, printed as ``student.layer2``. ``logits`` is the last stage."""

    part: str
    stage: str = LOGITS

    def __str__(self) -> str:
        return f"{self.part}.{self.stage}"


Outputs = dict[Tap, Tensor]
