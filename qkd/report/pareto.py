"""Pareto: accuracy against what it costs, for a page (SVG) and for a file (PNG)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from qkd.report import formatting
from qkd.report.diagram_edges import Box, meet
from qkd.report.svg import COLOURS, Frame, Scale, element, path, picture, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 424.0, 14.0, 256.0
LETTER = 5.6  # about the width of a letter of a name
PALETTE = ("#0b63b0", "#c24a00", "#00795a", "#8a3ea8", "#8a6100", "#c2327a", "#3f6f8f", "#5c5c5c")
MARKERS = "osD^vPX*"


class Panel(NamedTuple):
    """What accuracy is set against."""

    title: str
    key: str
    float_key: str
    axis: str
    scaled: float
    show: Callable[[float], str]


PANELS = (
    Panel("Accuracy against latency", "p50_ms", "float_p50_ms", "median latency, ms", 1.0, formatting.milliseconds),
    Panel(
        "Accuracy against size",
        "bytes",
        "float_bytes",
        "size of the file, kB",
        1e-3,
        lambda kilo: formatting.size(1e3 * kilo),
    ),
)


class Spot(NamedTuple):
    """One point. ``kind`` is what runs of one colour have in common; None: a float network, to compare with."""

    name: str
    cost: float
    top1: float
    kind: str | None


def spots(rows: Sequence[Mapping[str, Any]], panel: Panel) -> list[Spot]:
    """The runs whose cost is known, then the float networks they started from, each once."""
    found = [
        Spot(Path(row["run"]).name, row[panel.key] * panel.scaled, top1, f"{row['method']} {row['bits']}")
        for row in rows
        if row[panel.key] is not None and (top1 := deployed(row)) is not None
    ]
    first = {
        row["network"]: Spot(
            f"float {formatting.network(row['network'])}", row[panel.float_key] * panel.scaled, row["float_top1"], None
        )
        for row in reversed(rows)
        if row[panel.float_key] is not None and row["float_top1"] is not None
    }
    return [*found, *(first.values() if found else ())]


def deployed(row: Mapping[str, Any]) -> float | None:
    """The accuracy one gets: in onnxruntime where that was measured, else in PyTorch."""
    return row["top1"] if row["top1_onnxruntime"] is None else row["top1_onnxruntime"]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points no other beats in both cost (first) and accuracy (second), by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def kinds_of(found: Sequence[Spot]) -> list[str]:
    """The kinds in the order of their first run; the place is the number of the colour."""
    return list(dict.fromkeys(spot.kind for spot in found if spot.kind is not None))


def draw(panel: Panel, found: Sequence[Spot]) -> Markup:
    """The points and their frontier as SVG. Empty if there is none."""
    if not found:
        return Markup("")
    frame = _frame(found)
    kinds = kinds_of(found)
    front = frontier([(spot.cost, spot.top1) for spot in found])
    ticks = frame.x.ticks(5)
    parts = [frame.axes(ticks, panel.axis, lambda value: f"{value:g} %")]
    parts.append(path(_stairs([(frame.x(x), frame.y(y)) for x, y in front]), "front"))
    parts += [_point(spot, frame, kinds) for spot in found]
    parts += _names(found, frame)
    spoken = "; ".join(f"{spot.name} {formatting.percent(spot.top1)} at {panel.show(spot.cost)}" for spot in found)
    return picture(WIDTH, HEIGHT, f"{panel.title}: {spoken}", *parts)


def _frame(found: Sequence[Spot]) -> Frame:
    costs, scores = [spot.cost for spot in found], [spot.top1 for spot in found]
    room = 0.12 * (max(scores) - min(scores)) or 1.0
    x = Scale(0, max(costs) * 1.12, LEFT, RIGHT)
    return Frame(x, Scale(min(scores) - room, min(100.5, max(scores) + room), BOTTOM, TOP), LEFT, RIGHT)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    corners = [(later[0], before[1]) for before, later in pairwise(points)]
    return [place for pair in zip(points, [*corners, None], strict=True) for place in pair if place is not None]


def _point(spot: Spot, frame: Frame, kinds: Sequence[str]) -> Markup:
    hover = element("title", f"{spot.name}: {formatting.percent(spot.top1, 2)}")
    class_ = "hollow" if spot.kind is None else f"point dot c{kinds.index(spot.kind) % COLOURS}"
    return element("circle", hover, cx=frame.x(spot.cost), cy=frame.y(spot.top1), r=6, class_=class_)


def _names(found: Sequence[Spot], frame: Frame) -> Iterator[Markup]:
    """The name of each point beside, above or below it; none where all of these would cover something else."""
    taken = [_box(frame.x(spot.cost) - 6, frame.y(spot.top1) - 6, 12, 12) for spot in found]
    for number, spot in enumerate(found):
        x, y, wide = frame.x(spot.cost), frame.y(spot.top1), LETTER * len(spot.name)
        others = taken[:number] + taken[number + 1 :]
        places = ((x + 10, y - 6), (x - 10 - wide, y - 6), (x - wide / 2, y - 22), (x - wide / 2, y + 9))
        for left, top in places:
            box = _box(left, top, wide, 13)
            inside = left >= LEFT and left + wide <= RIGHT + 8
            if inside and not any(meet(box, other) for other in others):
                taken.append(box)
                yield text(left, top + 10, spot.name, class_="small halo")
                break


def _box(left: float, top: float, wide: float, high: float) -> Box:
    return left, top, left + wide, top + high


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The same as a picture, for `savefig`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(made)
    for axes, panel in zip(made.subplots(1, len(PANELS)), PANELS, strict=True):
        _plot(axes, panel, spots(rows, panel))
    return made


def _plot(axes: Axes, panel: Panel, found: Sequence[Spot]) -> None:
    axes.set(title=panel.title, xlabel=panel.axis, ylabel="top-1 on test, %")
    axes.grid(color="#dfe3e8", linewidth=0.8)
    axes.set_axisbelow(True)
    if not found:
        axes.text(0.5, 0.5, "not measured: run `qkd export` and `qkd bench`", ha="center", transform=axes.transAxes)
        return
    for number, kind in enumerate(kinds_of(found)):
        own = [spot for spot in found if spot.kind == kind]
        colour, marker = PALETTE[number % COLOURS], MARKERS[number % COLOURS]
        axes.scatter([s.cost for s in own], [s.top1 for s in own], label=kind, s=55, color=colour, marker=marker)
    floats = [spot for spot in found if spot.kind is None]
    axes.scatter(
        [s.cost for s in floats], [s.top1 for s in floats], facecolor="white", edgecolor="#59626d", label="float", s=55
    )
    stairs = _stairs(frontier([(spot.cost, spot.top1) for spot in found]))
    axes.plot([x for x, _ in stairs], [y for _, y in stairs], color="#59626d", linestyle="--", linewidth=1, zorder=0)
    axes.set_xlim(0, 1.12 * max(spot.cost for spot in found))
    axes.legend(frameon=False, loc="best")
