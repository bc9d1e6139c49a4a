"""Targets: soft labels built from the logits of several parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkd.taps import Tap


@dataclass(frozen=True)
class Target:
    """Whose logits a soft target is built from, and how: ``build([logits, ...], labels) -> (batch, classes)``."""

    name: str
    reads: tuple[Tap, ...]
    build: Callable[[Sequence[Tensor], Tensor], Tensor]


def one(tap: Tap) -> Target:
    """The logits of one part as they are."""
    return Target(tap.part, (tap,), lambda logits, labels: logits[0])


def mean(taps: Sequence[Tap]) -> Target:
    """The mean of the logits."""
    return Target("mean", tuple(taps), lambda logits, labels: torch.stack(tuple(logits)).mean(0))


def min_logit(taps: Sequence[Tap]) -> Target:
    """The element-wise minimum of logits that were shifted so that the true class of each member is zero.

    Its cross-entropy is at most the smallest of the members', sample by sample. Source: Guo et al. 2020 (KDCL),
    MinLogit; Pham et al. 2023, eq. 7.
    """
    return Target("ensemble", tuple(taps), min_logits)


def min_logits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``min_i (z_i - z_i[label])`` over the members. [(batch, classes)], (batch,) -> (batch, classes)."""
    shifted = [z - z.gather(1, labels[:, None]) for z in logits]
    return torch.stack(shifted).amin(0)
