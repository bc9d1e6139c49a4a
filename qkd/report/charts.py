"""Small charts as SVG: lines, stacked columns and horizontal bars, legible at the width of a phone.

They are drawn here and not by matplotlib because they belong to the page: colours and fonts are those of its style sheet, also
in the dark scheme, and a pointer over a value shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from qkd.report.formatting import number
from qkd.report.svg import COLOURS, Frame, Scale, element, line, path, picture, round_step, text

WIDTH, HEIGHT = 360.0, 208.0
NAMED, LETTER = 52.0, 7.0  # where bars begin; about the width of a letter of a value
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 12.0, 170.0
MOST_POINTS = 240  # of one line; more would not be distinguishable
MOST_MARKERS = 40
LOG_FROM = 40.0  # a range of more than so many times is drawn on a logarithmic scale
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Values over x. ``colour``: the number of a class of the style sheet."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0

    @property
    def finite(self) -> list[Point]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Chart:
    """A line chart. ``borders``: x -> name of a vertical line there. ``ring``: a point with a circle around it.

    ``show`` writes a value. ``low`` and ``high`` limit the y axis, ``least_span`` is the least it covers; ``reference`` is a
    horizontal line with a name.
    """

    title: str
    series: tuple[Series, ...]
    name_x: str = "epoch"
    show: Callable[[float], str] = number
    low: float | None = None
    high: float | None = None
    least_span: float = 0.0
    borders: Mapping[float, str] = field(default_factory=dict)
    reference: tuple[float, str] | None = None
    ring: Point | None = None

    @property
    def label(self) -> str:
        """The chart in words, for readers who cannot see it."""
        lines = [
            f"{each.name} from {self.show(each.finite[0][1])} to {self.show(each.finite[-1][1])}"
            for each in self.series
            if each.finite
        ]
        return f"{self.title}, over {self.name_x}s: {'; '.join(lines)}"


def line_chart(chart: Chart) -> Markup:
    """Lines with markers; the scale is logarithmic for a range of more than ``LOG_FROM``. Empty if there is nothing to draw."""
    points = [point for series in chart.series for point in series.finite]
    if not points:
        return Markup("")
    frame = Frame(_across([x for x, _ in points]), _upright(chart, [y for _, y in points]), LEFT, RIGHT)
    parts = [
        frame.axes(whole_ticks(frame.x), chart.name_x, chart.show),
        *_borders(chart, frame),
        *_reference(chart, frame),
    ]
    parts += [drawn for series in chart.series for drawn in _line(series, chart, frame)]
    return picture(WIDTH, HEIGHT, chart.label, *parts, *_ring(chart, frame))


def _across(xs: Sequence[float]) -> Scale:
    low, high = min(xs), max(xs)
    return Scale(low, high, LEFT + 8, RIGHT - 6) if high > low else Scale(low - 1, high + 1, LEFT + 8, RIGHT - 6)


def whole_ticks(scale: Scale, count: int = 6) -> list[float]:
    """About ``count`` whole numbers within a range."""
    step = max(1.0, round_step((scale.high - scale.low) / count))
    first = math.ceil(scale.low / step)
    return [i * step for i in range(first, math.floor(scale.high / step) + 1)]


def _upright(chart: Chart, ys: Sequence[float]) -> Scale:
    low, high = min(ys), max(ys)
    if chart.reference:
        low, high = min(low, chart.reference[0]), max(high, chart.reference[0])
    if chart.low is None and low > 0 and high / low > LOG_FROM:
        return Scale(low / 1.2, high * 1.2, BOTTOM, TOP, "log")
    missing = max(0.0, chart.least_span - (high - low)) / 2
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low = chart.low if chart.low is not None else low - max(missing, margin)
    high = high + max(missing, margin)
    return Scale(low, min(high, chart.high) if chart.high is not None else high, BOTTOM, TOP)


def _line(series: Series, chart: Chart, frame: Frame) -> list[Markup]:
    seen = thinned(series.finite)
    places = [(frame.x(x), frame.y(y)) for x, y in seen]
    colour = f"c{series.colour % COLOURS}"
    drawn = [path(places, f"line {colour}")]
    if len(seen) <= MOST_MARKERS:
        for (x, y), (at_x, at_y) in zip(seen, places, strict=True):
            hover = element("title", f"{series.name}, {chart.name_x} {x:g}: {chart.show(y)}")
            drawn.append(element("circle", hover, cx=at_x, cy=at_y, r=2.4, class_=f"dot {colour}"))
    return drawn


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most ``MOST_POINTS`` of the points, first and last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    every = -(-len(points) // (MOST_POINTS - 1))
    kept = list(points[::every])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _borders(chart: Chart, frame: Frame) -> list[Markup]:
    drawn = []
    for x, name in chart.borders.items():
        at = frame.x(x)
        drawn += [line(at, TOP, at, BOTTOM, "border"), text(at + 3, TOP + 8, name, class_="tick")]
    return drawn


def _reference(chart: Chart, frame: Frame) -> list[Markup]:
    if chart.reference is None:
        return []
    value, name = chart.reference
    at = frame.y(value)
    return [line(LEFT, at, RIGHT, at, "reference"), text(RIGHT, at - 4, name, anchor="end", class_="tick halo")]


def _ring(chart: Chart, frame: Frame) -> list[Markup]:
    if chart.ring is None:
        return []
    x, y = chart.ring
    return [element("circle", cx=frame.x(x), cy=frame.y(y), r=5.5, class_="ring")]


@dataclass(frozen=True)
class Stack:
    """The data of stacked columns: ``shares[name][x]``, whose sum over names is one column at x."""

    title: str
    shares: Mapping[str, Mapping[float, float]]
    colours: Mapping[str, int]


def stack_chart(stack: Stack) -> Markup:
    """Columns of parts that fill 100 %, the first name at the bottom; large parts show their percentage."""
    xs = sorted({x for values in stack.shares.values() for x in values})
    if not xs:
        return Markup("")
    wide = min(26.0, 0.8 * (RIGHT - LEFT) / len(xs))
    pitch = (RIGHT - LEFT) / len(xs)
    centres = Scale(0, len(xs), LEFT + pitch / 2, RIGHT + pitch / 2)
    frame = Frame(centres, Scale(0, 1, BOTTOM, TOP), LEFT, RIGHT)
    axes = frame.axes([], "epoch", lambda y: f"{100 * y:.0f} %")
    each = max(1, round(len(xs) / 10))
    ticks = [
        text(centres(i), BOTTOM + 15, f"{x:g}", anchor="middle", class_="tick")
        for i, x in enumerate(xs)
        if i % each == 0
    ]
    bars = [_column(stack, x, centres(i) - wide / 2, wide, frame.y) for i, x in enumerate(xs)]
    last = "; ".join(
        f"{name} {100 * values[xs[-1]]:.0f} %" for name, values in stack.shares.items() if xs[-1] in values
    )
    return picture(WIDTH, HEIGHT, f"{stack.title}, at the end: {last}", axes, *ticks, *bars)


def _column(stack: Stack, x: float, left: float, wide: float, scale: Scale) -> Markup:
    parts, so_far = [], 0.0
    total = sum(values.get(x, 0.0) for values in stack.shares.values()) or 1.0
    for name, values in stack.shares.items():
        part = values.get(x, 0.0) / total
        top, bottom = scale(so_far + part), scale(so_far)
        so_far += part
        if bottom - top < 0.2:
            continue
        hover = element("title", f"epoch {x:g}, {name}: {100 * part:.1f} %")
        colour = f"bar c{stack.colours[name] % COLOURS}"
        parts.append(
            element("rect", hover, x=left, y=top + 0.5, width=wide, height=max(0.4, bottom - top - 1), class_=colour)
        )
        if bottom - top > 14 and wide >= 20:
            inside = text(
                left + wide / 2, (top + bottom) / 2 + 3.5, f"{100 * part:.0f}", anchor="middle", class_="inside"
            )
            parts.append(inside)
    return element("g", *parts)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar. ``kind``: ``ours``, or ``theirs`` for what it is compared with."""

    name: str
    value: float
    shown: str
    kind: Literal["ours", "theirs"]


def bar_chart(title: str, groups: Mapping[str, Sequence[Bar]]) -> Markup:
    """Horizontal bars from zero, in groups with a heading and a scale of their own; the value is written after each bar."""
    parts: list[Markup] = []
    y = 4.0
    written = max((len(bar.shown) for bars in groups.values() for bar in bars), default=0)
    longest = min(WIDTH - 160, WIDTH - NAMED - 6 - LETTER * written)
    for heading, bars in groups.items():
        scale = Scale(0, max(bar.value for bar in bars), 0, longest)
        if heading:
            parts.append(text(0, y + 12, heading, class_="heading"))
            y += 18
        for bar in bars:
            parts += _bar(bar, y, scale)
            y += 20
        y += 8
    words = "; ".join(f"{heading} {bar.name} {bar.shown}".strip() for heading, bars in groups.items() for bar in bars)
    return picture(WIDTH, y, f"{title}: {words}", *parts) if parts else Markup("")


def _bar(bar: Bar, y: float, scale: Scale) -> list[Markup]:
    long = max(1.0, scale(bar.value))
    return [
        text(0, y + 12, bar.name, class_="tick"),
        element("rect", x=NAMED, y=y + 2, width=long, height=13, rx=2, class_=f"bar {bar.kind}"),
        text(NAMED + long + 6, y + 12, bar.shown, class_="note"),
    ]
