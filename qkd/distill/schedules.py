"""Schedules: the weight of a term as a function of the progress of its phase, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from qkd.errors import PlanError
from qkd.options import ShareCourse

Schedule = Callable[[float], float]  # progress of the phase, 0..1, -> weight
Weight = float | Schedule


def value_at(weight: Weight, progress: float) -> float:
    """The number a weight is at a progress of 0..1."""
    return weight(progress) if callable(weight) else weight


def times(one: Weight, other: Weight) -> Weight:
    """The product of two weights: a number where both are numbers, else a schedule."""
    if not callable(one) and not callable(other):
        return one * other
    for unit, rest in ((one, other), (other, one)):
        if not callable(unit) and unit == 1:
            return rest
    return Product(one, other)


def course_of(option: float | ShareCourse) -> Weight:
    """What an option of a recipe says: a number, or the line of ``{from: 0.9, to: 0.5}``."""
    if not isinstance(option, dict):
        return option
    return Linear(option["from"], option["to"], option.get("until", 1.0))


def remainder_of(option: float | ShareCourse) -> Weight:
    """One less that."""
    if not isinstance(option, dict):
        return 1 - option
    return Linear(1 - option["from"], 1 - option["to"], option.get("until", 1.0))


@dataclass(frozen=True)
class Product:
    """Two weights multiplied, at least one of them a schedule."""

    one: Weight
    other: Weight

    def __call__(self, progress: float) -> float:
        return value_at(self.one, progress) * value_at(self.other, progress)

    def __str__(self) -> str:
        return f"{_text(self.one)} x {_text(self.other)}"


@dataclass(frozen=True)
class Constant:
    """One value throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``, which is reached at ``until`` and kept from there on."""

    start: float
    end: float
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * _along(progress, self.until)

    def __str__(self) -> str:
        return f"{self.start:g} -> {self.end:g} linearly{_by(self.until)}"


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` to ``end``: slow, fast, slow."""

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
    """Sigmoid ramp-up ``peak exp(-5 (1 - t)^2)``, where t grows from 0 to 1 at ``until``.

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
    """A line from ``start`` to ``end`` that begins again at every point of ``at``, given as shares of the phase.

    Source: Fu et al. 2020 (IAKD): the growth is repeated whenever the learning rate falls.
    """

    start: float
    end: float
    at: tuple[float, ...] = (0.0, 0.5, 0.75)

    def __post_init__(self) -> None:
        if self.at[:1] != (0.0,) or list(self.at) != sorted(set(self.at)) or self.at[-1] >= 1:
            raise PlanError(
                f"review: `at` must begin with 0 and increase, below 1; got {self.at}", key="schedule.review-points"
            )

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


def _text(weight: Weight) -> str:
    return f"({weight})" if callable(weight) else f"{weight:g}"
