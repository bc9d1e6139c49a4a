"""Plots accuracy against latency and against size with matplotlib, once for the page (SVG) and for an image (PNG)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qkd.quantizers.scheme import titled
from qkd.report import formatting
from qkd.report.diagram_edges import Box, meet
from qkd.report.figure_svg import COLOURS_OF_THE_PAGE, FONT_SIZE
from qkd.report.svg import COLOURS
from qkd.storage.results import ComparedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
LETTER, LINE = 0.62 * FONT_SIZE, 1.2 * FONT_SIZE  # about the width of a letter and the height of a line, in points
SIZE = (4.6, 3.2)  # inches of one panel


class Point(NamedTuple):
    """A network in the plot. ``kind``: runs of one kind have one colour; None for a float network to compare with."""

    name: str
    cost: float
    top1: float
    kind: str | None


@dataclass(frozen=True)
class Panel:
    """A plot of accuracy against a cost: its title, the costs of a run and of its float network, the axis, the unit."""

    title: str
    cost: Callable[[ComparedRun], float | None]
    float_cost: Callable[[ComparedRun], float | None]
    axis: str
    factor: float
    written: Callable[[float], str]

    def label(self, points: Sequence[Point]) -> str:
        """The plot in words."""
        listed = (f"{each.name} {formatting.percent(each.top1)} at {self.written(each.cost)}" for each in points)
        return f"{self.title}: {'; '.join(listed)}"


PANELS = (
    Panel(
        "Accuracy against latency",
        lambda row: row.p50_ms,
        lambda row: row.float_p50_ms,
        "median latency, ms",
        1.0,
        formatting.milliseconds,
    ),
    Panel(
        "Accuracy against size",
        lambda row: row.bytes,
        lambda row: row.float_bytes,
        "size of the file, kB",
        1e-3,
        lambda kilobytes: formatting.size(1e3 * kilobytes),
    ),
)


def points_of(rows: Sequence[ComparedRun], panel: Panel) -> list[Point]:
    """The runs whose cost is known, then the float networks they started from, each once."""
    found = [
        Point(Path(row.run or "").name, cost * panel.factor, top1, _kind(row))
        for row in rows
        if (cost := panel.cost(row)) is not None and (top1 := deployed(row)) is not None
    ]
    floats = {
        row.network: Point(f"float {formatting.network(row.network)}", cost * panel.factor, row.float_top1, None)
        for row in reversed(rows)
        if (cost := panel.float_cost(row)) is not None and row.float_top1 is not None
    }
    return [*found, *(floats.values() if found else ())]


def deployed(row: ComparedRun) -> float | None:
    """The accuracy of the exported file in onnxruntime where it was measured, else that in PyTorch."""
    return row.top1 if row.top1_onnxruntime is None else row.top1_onnxruntime


def _kind(row: ComparedRun) -> str:
    return f"{row.method} {titled(str(row.bits), row.levels)}"


def kinds_of(rows: Sequence[ComparedRun]) -> list[str]:
    """The kinds of runs in any panel, in the order of their first run; the position is the number of the colour."""
    found = [point.kind for panel in PANELS for point in points_of(rows, panel)]
    return list(dict.fromkeys(kind for kind in found if kind is not None))


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both cost (first) and accuracy (second), by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    corners = [(later[0], before[1]) for before, later in pairwise(points)]
    return [place for pair in zip(points, [*corners, None], strict=True) for place in pair if place is not None]


def figure(rows: Sequence[ComparedRun], panels: Sequence[Panel]) -> Figure:
    """The panels side by side, with titles and a legend; a single panel is for a page, which has its own."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": FONT_SIZE}):
        made = Figure(figsize=(SIZE[0] * len(panels), SIZE[1]), layout="constrained")
        FigureCanvasAgg(made)
        kinds = kinds_of(rows)
        for axes, panel in zip(made.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            points = points_of(rows, panel)
            _draw(axes, panel, points, kinds)
            if len(panels) > 1:
                axes.set_title(panel.title)
        if len(panels) > 1:
            _add_legend(made)
        made.draw_without_rendering()
        for axes, panel in zip(made.axes, panels, strict=True):
            _add_names(axes, points_of(rows, panel))
    return made


def _add_legend(made: Figure) -> None:
    """One legend below all panels; none where nothing was drawn."""
    found = {label: line for axes in made.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        made.legend(list(found.values()), list(found), loc="outside lower center", ncols=5, frameon=False)


def _draw(axes: Axes, panel: Panel, points: Sequence[Point], kinds: Sequence[str]) -> None:
    colours = COLOURS_OF_THE_PAGE
    _style(axes, panel)
    if not points:
        missing = "not measured: run `qkd export` and `qkd bench`"
        axes.text(0.5, 0.5, missing, ha="center", transform=axes.transAxes)
        return
    for kind in [kind for kind in kinds if any(point.kind == kind for point in points)]:
        number = kinds.index(kind) % COLOURS
        own = [(point.cost, point.top1) for point in points if point.kind == kind]
        style: dict[str, Any] = {"color": colours[f"c{number}"], "marker": MARKERS[number], "label": kind}
        axes.plot(*zip(*own, strict=True), linestyle="none", markersize=7, **style)
    floats = [(point.cost, point.top1) for point in points if point.kind is None]
    if floats:
        hollow: dict[str, Any] = {
            "markerfacecolor": colours["card"],
            "markeredgecolor": colours["muted"],
            "label": "float",
        }
        axes.plot(*zip(*floats, strict=True), "o", linestyle="none", markersize=7, markeredgewidth=1.4, **hollow)
    stairs = _stairs(frontier([(point.cost, point.top1) for point in points]))
    axes.plot(*zip(*stairs, strict=True), color=colours["muted"], linestyle="--", linewidth=1, zorder=0)
    axes.set_xlim(0, 1.12 * max(point.cost for point in points))
    axes.margins(y=0.14)


def _style(axes: Axes, panel: Panel) -> None:
    colours = COLOURS_OF_THE_PAGE
    axes.set_xlabel(panel.axis, color=colours["muted"])
    axes.set_ylabel("top-1 on test, %", color=colours["muted"])
    axes.grid(axis="y", color=colours["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=colours["muted"])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])


class Place(NamedTuple):
    """Where a name may be: its offset from the point in points, and its horizontal alignment."""

    x: float
    y: float
    align: Literal["left", "right", "center"]

    def box(self, at: tuple[float, float], wide: float) -> Box:
        """The box of a name of this width beside a point at a position."""
        left = at[0] + self.x - {"left": 0.0, "right": wide, "center": wide / 2}[self.align]
        return left, at[1] + self.y - LINE / 2, left + wide, at[1] + self.y + LINE / 2


PLACES = (
    Place(8, 0, "left"),
    Place(-8, 0, "right"),
    Place(0, 7 + LINE / 2, "center"),
    Place(0, -7 - LINE / 2, "center"),
)


def _add_names(axes: Axes, points: Sequence[Point]) -> None:
    """The name of each point beside, above or below it; none where all of these places would cover something else."""
    scale = 72 / axes.figure.dpi
    centres = [tuple(scale * axes.transData.transform((point.cost, point.top1))) for point in points]
    left, right = (scale * edge for edge in axes.get_window_extent().intervalx)
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    background = {"facecolor": COLOURS_OF_THE_PAGE["card"], "edgecolor": "none", "boxstyle": "square,pad=0.1"}
    for number, (point, centre) in enumerate(zip(points, centres, strict=True)):
        others = taken[:number] + taken[number + 1 :]
        for place in PLACES:
            box = place.box(centre, LETTER * len(point.name))
            if left <= box[0] and box[2] <= right + 6 and not any(meet(box, other) for other in others):
                taken.append(box)
                style: dict[str, Any] = {"ha": place.align, "va": "center", "bbox": background}
                at = (point.cost, point.top1)
                axes.annotate(point.name, at, (place.x, place.y), textcoords="offset points", **style)
                break
