"""The charts of training: accuracy, losses, importance and shares of the gradient, epoch by epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from qkd.distill.terms import TermName
from qkd.report.charts import Chart, Point, Series, Stack, line_chart, stack_chart
from qkd.report.collaboration import NORM, gradient_beside
from qkd.report.formatting import number, percent
from qkd.report.run_data import RunData, mapping
from qkd.report.tables import STUDENT
from qkd.storage.json_record import is_number

MOST_ROWS = 25  # of a table of numbers
Epochs = Sequence[Mapping[str, Any]]


class Entry(NamedTuple):
    """A line of a legend."""

    colour: int
    name: str


class Panel(NamedTuple):
    """A chart with its title, its legend, and a note below it."""

    title: str
    drawing: Markup
    legend: Sequence[Entry] = ()
    note: str = ""


class Table(NamedTuple):
    """The numbers that charts were drawn from."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def accuracy(run_data: RunData) -> list[Panel]:
    """Validation accuracy of the product over all epochs, with the best epoch marked."""
    epochs = run_data.epochs
    points = _points(epochs, "val/top1")
    if not points:
        return []
    kept, best = max(points, key=lambda point: (point[1], point[0]))
    series = (Series("product on validation", points),)
    chart = Chart(
        "Validation accuracy", series, show=_tick_percent, high=100.5, borders=borders(epochs), ring=(kept, best)
    )
    return [
        Panel("Validation accuracy of the product", line_chart(chart), note=f"Kept: epoch {kept:g}, {percent(best)}")
    ]


def losses(run_data: RunData) -> list[Panel]:
    """One panel per kind of term: labels, imitation, attention, ..."""
    epochs, panels = run_data.epochs, []
    for kind, names in _kinds(epochs).items():
        series = tuple(
            Series(_whose(name), _points(epochs, f"train/loss/{name}"), colour) for colour, name in enumerate(names)
        )
        chart = Chart(f"Loss {kind}", series, low=_floor(series), borders=borders(epochs))
        panels.append(Panel(f"Loss: {kind}", line_chart(chart), _legend(series)))
    return panels


def _floor(series: Sequence[Series]) -> float | None:
    """Zero, unless a logarithmic scale is needed or there are negative values."""
    values = [y for each in series for _, y in each.finite]
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > 40
    return None if wide or (values and min(values) < 0) else 0.0


def importance(run_data: RunData) -> list[Panel]:
    """One panel per matched layer: the weight of each teacher in the fused features."""
    epochs, panels = run_data.epochs, []
    for stage, teachers in _tree(epochs, "importance").items():
        series = tuple(
            Series(teacher, _points(epochs, f"importance/{stage}/{teacher}"), colour)
            for colour, teacher in enumerate(teachers)
        )
        equal = (1 / len(series), "all equal")
        digits = 1 if _span(series) < 0.02 else 0
        chart = Chart(
            f"Importance at {stage}",
            series,
            show=partial(_share, digits=digits),
            least_span=0.01,
            borders=borders(epochs),
            reference=equal,
        )
        panels.append(Panel(f"Importance at {stage}", line_chart(chart), _legend(series)))
    return panels


def _span(series: Sequence[Series]) -> float:
    values = [y for each in series for _, y in each.finite]
    return max(values) - min(values) if values else 0.0


def _share(value: float, digits: int) -> str:
    return percent(100 * value, digits)


def _ratio(value: float) -> str:
    return f"{number(100 * value)} %"


def gradients(run_data: RunData) -> list[Panel]:
    """One panel per learner: the share of each term in its gradient, at the epochs where it was measured."""
    epochs = run_data.epochs
    tree = _tree(epochs, "gradient")
    order = ["student", *mapping(run_data.recipe.get("teachers")), *tree]
    palette: dict[tuple[str, int], int] = {}
    panels = []
    for learner in dict.fromkeys(name for name in order if name in tree):
        colours = _by_kind(tree[learner], palette)
        shares = {term: dict(_points(epochs, f"gradient/{learner}/{term}")) for term in colours}
        drawing = stack_chart(Stack(f"Gradient of {learner}", shares, colours))
        panels.append(
            Panel(f"Gradient of {learner}", drawing, [Entry(colour, term) for term, colour in colours.items()])
        )
    return panels


def gradients_beside(run_data: RunData) -> list[Panel]:
    """One panel: the norm of the gradient of all that learns, over that of the student's; empty for a student alone."""
    epochs = run_data.epochs
    keys = dict.fromkeys(key for line in epochs for key in line if key.startswith(NORM))
    found = {key.removeprefix(NORM): gradient_beside(epochs, key.removeprefix(NORM)) for key in keys}
    others = {part: points for part, points in found.items() if part != STUDENT and any(ratio for _, ratio in points)}
    if not others:
        return []
    series = tuple(
        Series(part, tuple((float(place + 1), ratio) for place, ratio in points if ratio), colour)
        for colour, (part, points) in enumerate(others.items())
    )
    title = "Gradient beside the student's"
    chart = Chart(title, series, show=_ratio, borders=borders(epochs), reference=(1.0, "the student's"))
    return [Panel(title, line_chart(chart), _legend(series))]


def _by_kind(terms: Sequence[str], palette: dict[tuple[str, int], int]) -> dict[str, int]:
    """A colour for each term; the n-th term of a kind has the same colour in every panel."""
    seen: Counter[str] = Counter()
    colours = {}
    for term in terms:
        kind = TermName.parse(term).kind
        colours[term] = palette.setdefault((kind, seen[kind]), len(palette))
        seen[kind] += 1
    return colours


def numbers(run_data: RunData, prefixes: Sequence[str]) -> Table | None:
    """The values that charts were drawn from, at most ``MOST_ROWS`` epochs; None where there are none."""
    epochs = run_data.epochs
    keys = list(dict.fromkeys(key for line in epochs for key in line if key.startswith(tuple(prefixes))))
    if not keys:
        return None
    rows = [
        [str(i), str(line.get("phase", "")), *(number(line[key]) if is_number(line.get(key)) else "" for key in keys)]
        for i, line in enumerate(epochs, 1)
        if any(key in line for key in keys)
    ]
    every = -(-len(rows) // MOST_ROWS)
    kept = rows[:: max(1, every)]
    kept = kept if kept[-1] is rows[-1] else [*kept, rows[-1]]
    return Table(["epoch", "phase", *(key.removeprefix("train/") for key in keys)], kept)


def latest_importance(run_data: RunData) -> dict[tuple[str, str], float]:
    """(teacher, stage) -> its importance in the last epoch."""
    found: dict[tuple[str, str], float] = {}
    for line in run_data.epochs:
        for key, value in line.items():
            if key.startswith("importance/") and key.count("/") >= 2 and is_number(value):
                _, stage, teacher = key.split("/", 2)
                found[teacher, stage] = float(value)
    return found


def borders(epochs: Epochs) -> dict[float, str]:
    """Where each phase begins: position on the axis of epochs -> name. Empty for a single phase."""
    phases = [str(line.get("phase", "")) for line in epochs]
    starts = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    return {i + 0.5 if i else 1.0: phases[i] for i in starts} if len(starts) > 1 else {}


def _points(epochs: Epochs, key: str) -> tuple[Point, ...]:
    return tuple((float(i), float(line[key])) for i, line in enumerate(epochs, 1) if is_number(line.get(key)))


def _tree(epochs: Epochs, root: str) -> dict[str, list[str]]:
    """``root/branch/leaf`` keys -> the leaves of each branch, in the order they appear."""
    tree: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for line in epochs for key in line):
        words = key.split("/", 2)
        if words[0] == root and len(words) == 3:
            tree.setdefault(words[1], []).append(words[2])
    return tree


def _kinds(epochs: Epochs) -> dict[str, list[str]]:
    """The terms of each kind: ``label`` -> ``label/student``, ``label/shared``."""
    kinds: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for line in epochs for key in line if key.startswith("train/loss/")):
        name = key.removeprefix("train/loss/")
        kinds.setdefault(TermName.parse(name).kind, []).append(name)
    return kinds


def _whose(name: str) -> str:
    """``attention/student.layer1<shared.layer1`` -> ``student.layer1 from shared.layer1``."""
    found = TermName.parse(name)
    return f"{found.pupil} from {found.source}" if found.source else found.pupil


def _legend(series: Sequence[Series]) -> list[Entry]:
    return [Entry(each.colour, each.name) for each in series]


def _tick_percent(value: float) -> str:
    return percent(value, 0 if float(value).is_integer() else 1)
