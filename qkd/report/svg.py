"""SVG elements as escaped text, and the scales and axes of charts. Colours are classes of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

COLOURS = 8  # classes c0..c7 of the style sheet; each has its own dash, so that lines differ not by colour alone


def element(tag: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element. Children that are not Markup are escaped; ``class_`` is class, ``stroke_width`` is stroke-width."""
    words = {
        name.rstrip("_").replace("_", "-"): _plain(value) for name, value in attributes.items() if value is not None
    }
    written = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in words.items())
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup("").join(children))


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def picture(width: float, height: float, label: str, *children: Markup, style: str | None = None) -> Markup:
    """An image that fills the width it is given; ``label`` describes it to readers who cannot see it."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *children, viewBox=box, role="img", aria_label=label, class_="chart", style=style)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, **more: object) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **more)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Straight lines from point to point."""
    drawn = "".join(f"{'L' if i else 'M'}{x:.2f} {y:.2f}" for i, (x, y) in enumerate(points))
    return element("path", d=drawn, class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps values to positions: ``low`` to ``high`` onto ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    kind: Literal["linear", "log"] = "linear"

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.kind == "log":
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1.0)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values within the range."""
        if self.kind == "log":
            return [tick for tick in self._powers(count) if self.low * 0.999 <= tick <= self.high * 1.001]
        step = round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _powers(self, count: int) -> list[float]:
        """Powers of ten around the range; where they are few, also 2 and 5 times them."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
        return [factor * 10.0**e for e in exponents[:: max(1, len(exponents) // count)] for factor in factors]


def round_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is at least ``least``."""
    if least <= 0 or not math.isfinite(least):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart, from ``left`` to ``right``, with its two scales."""

    x: Scale
    y: Scale
    left: float
    right: float

    def axes(self, xs: Iterable[float], name_x: str, show: Callable[[float], str]) -> Markup:
        """Grid, tick labels, and the name of the x axis."""
        left, right, bottom = self.left, self.right, self.y.start
        parts = []
        for value in self.y.ticks():
            parts.append(line(left, self.y(value), right, self.y(value), "grid"))
            parts.append(text(left - 6, self.y(value) + 3.5, show(value), anchor="end", class_="tick"))
        parts += [text(self.x(value), bottom + 15, f"{value:g}", anchor="middle", class_="tick") for value in xs]
        parts.append(line(left, bottom, right, bottom, "axis"))
        parts.append(text((left + right) / 2, bottom + 30, name_x, anchor="middle", class_="label"))
        return element("g", *parts)
