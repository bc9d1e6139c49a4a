"""Schedules: the weight of a term as a function of how far its phase is, 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkd.errors import PlanError


@dataclass(frozen=True)
class Constant:
    """The same all along."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Linear:
    """From one value to another along a straight line, reached at ``until`` and kept from there on."""

    start: float
    end: float
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * _along(progress, self.until)

    def __str__(self) -> str:
        return f"{self.start:g} -> {self.end:g} linearly{_by(self.until)}"


@dataclass(frozen=True)
class Cosine:
    """From one value to another along half a cosine: slow, fast, slow."""

    start: float
    end: float
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        along = (1 - math.cos(math.pi * _along(progress, self.until))) / 2
        return self.start + (self.end - self.start) * along

    def __str__(self) -> str:
        return f"{self.start:g} -> {self.end:g} along a cosine{_by(self.until)}"


@dataclass(frozen=True)
class Ramp:
    """``peak exp(-5 (1 - t)^2)``, with t growing to one at ``until``: nothing while everybody is still wrong.

    Source: Laine & Aila 2017 (temporal ensembling); Kim et al. 2019 (FFL) ramp over 80 of 300 epochs.
    """

    peak: float = 1.0
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.peak * math.exp(-5 * (1 - _along(progress, self.until)) ** 2)

    def __str__(self) -> str:
        return f"ramp up to {self.peak:g}{_by(self.until)}"


@dataclass(frozen=True)
class Decay:
    """``start base^(times t)``: multiplied ``times`` times by ``base`` until the end, evenly.

    Source: Passalis et al. 2020 weigh hidden layers with 100 x 0.7^epoch over 50 epochs.
    """

    start: float
    base: float = 0.7
    times: float = 50.0

    def __call__(self, progress: float) -> float:
        return self.start * self.base ** (self.times * progress)

    def __str__(self) -> str:
        return f"{self.start:g} x {self.base:g}^({self.times:g} t)"


@dataclass(frozen=True)
class Review:
    """A line from ``start`` to ``end`` that begins again at every one of ``at``, the parts of a phase.

    Source: Fu et al. 2020 (IAKD): the growth is repeated whenever the learning rate falls.
    """

    start: float
    end: float
    at: tuple[float, ...] = (0.0, 0.5, 0.75)

    def __post_init__(self) -> None:
        if self.at[:1] != (0.0,) or list(self.at) != sorted(set(self.at)) or self.at[-1] >= 1:
            raise PlanError(f"a review begins at 0 and again at growing places below 1, got {self.at}")

    def __call__(self, progress: float) -> float:
        ends = (*self.at[1:], 1.0)
        begin, end = next((pair for pair in zip(self.at, ends, strict=True) if progress < pair[1]), (self.at[-1], 1.0))
        return self.start + (self.end - self.start) * min(1.0, (progress - begin) / (end - begin))

    def __str__(self) -> str:
        return f"{self.start:g} -> {self.end:g} linearly, again from {', '.join(f'{at:g}' for at in self.at)}"


def _along(progress: float, until: float) -> float:
    return min(1.0, max(0.0, progress / until)) if until > 0 else 1.0


def _by(until: float) -> str:
    return "" if until == 1 else f" until {until:g} of the phase"
