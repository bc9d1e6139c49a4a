"""Writes a comparison of runs as a page or an image: accuracy against latency and against size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qkd.errors import UsageError
from qkd.quantizers.scheme import titled
from qkd.report import formatting
from qkd.report.figure_svg import svg_of
from qkd.report.page import page
from qkd.report.pareto import PANELS, deployed, figure, kinds_of, points_of
from qkd.report.training_curves import Entry
from qkd.storage.atomic import write_atomic
from qkd.storage.results import ComparedRun, ComparedSeeds, Spread

ENDINGS = (".html", ".png")
Row = ComparedRun | ComparedSeeds


class Column(NamedTuple):
    """A heading, its unit, the value of a row, the factor of the unit, and the digits that are written."""

    name: str
    unit: str
    value: Callable[[Row], float | Spread | None]
    factor: float
    digits: int


COLUMNS = (
    Column("float", "%", lambda row: row.float_top1, 1.0, 1),
    Column("before", "%", lambda row: row.before_top1, 1.0, 1),
    Column("after", "%", lambda row: row.top1, 1.0, 1),
    Column("file", "%", lambda row: row.top1_onnxruntime, 1.0, 1),
    Column("size", "kB", lambda row: row.bytes, 1e-3, 1),
    Column("call", "ms", lambda row: row.p50_ms, 1.0, 3),
    Column("speed-up", "x", lambda row: row.speedup, 1.0, 2),
    Column("train", "s", lambda row: row.seconds, 1.0, 0),
)


def require_known(output: Path) -> None:
    """Raises UsageError for a file that is neither a page nor an image."""
    if output.suffix.lower() not in ENDINGS:
        raise UsageError(f"{output}: give a file that ends in {' or '.join(ENDINGS)}", key="compare.unknown-ending")


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of runs, or of groups of runs that differ only in their seed. Headings have their unit below."""
    last = "seeds" if rows and isinstance(rows[0], ComparedSeeds) else "seed"
    header = ["run", "method", "product", *(f"{column.name}\n{column.unit}" for column in COLUMNS), last]
    return header, [_line(row) for row in rows]


def _line(row: Row) -> list[str]:
    names = [Path(run).name for run in (row.runs or () if isinstance(row, ComparedSeeds) else [row.run or ""])]
    seeds = row.seeds or () if isinstance(row, ComparedSeeds) else [row.seed]
    product = f"{formatting.network(row.network)} {titled(row.bits or '', row.levels)}".strip()
    first = [_common_name(names), str(row.method or formatting.MISSING), product]
    cells = [_cell(column.value(row), column.factor, column.digits) for column in COLUMNS]
    return [*first, *cells, ", ".join(formatting.MISSING if seed is None else str(seed) for seed in seeds)]


def _common_name(names: Sequence[str]) -> str:
    """What the names of several runs begin with, and how many runs they are."""
    if len(names) == 1:
        return names[0]
    shortest = min(names, key=len)
    alike = next(n for n in range(len(shortest), -1, -1) if all(name.startswith(shortest[:n]) for name in names))
    return f"{shortest[:alike].rstrip('-_ s') or names[0]} ({len(names)} runs)"


def _cell(value: float | Spread | None, factor: float, digits: int) -> str:
    """A number, or the mean ± standard deviation of several."""
    mean, deviation = (value.mean, value.std) if isinstance(value, Spread) else (value, None)
    if mean is None:
        return formatting.MISSING
    spread = "" if deviation is None else f" ± {deviation * factor:.{digits}f}"
    return f"{mean * factor:.{digits}f}{spread}"


def write(output: Path, rows: Sequence[ComparedRun], groups: Sequence[ComparedSeeds] = ()) -> Path:
    """Write the comparison as a page or an image, by the ending of the file. Raises UsageError, RunError."""
    require_known(output)
    if output.suffix.lower() == ".html":
        return write_atomic(output, lambda file: file.write(render(rows, groups).encode()))
    return write_atomic(output, lambda file: figure(rows, PANELS).savefig(file, dpi=160, format="png"))  # type: ignore[arg-type]


def render(rows: Sequence[ComparedRun], groups: Sequence[ComparedSeeds] = ()) -> str:
    """The comparison as a self-contained page."""
    panels = [(panel, points_of(rows, panel)) for panel in PANELS]
    drawings = [(panel.title, svg_of(figure(rows, [panel]), panel.label(found))) for panel, found in panels if found]
    header, lines = table_of(rows)
    return page(
        "compare.html",
        sentence=sentence(rows),
        drawings=drawings,
        legend=[Entry(number, kind) for number, kind in enumerate(kinds_of(rows))],
        header=header,
        lines=lines,
        groups=table_of(groups) if groups else None,
    )


def sentence(rows: Sequence[ComparedRun]) -> str:
    """How many runs there are, and which of them is the most accurate."""
    finished = [row for row in rows if deployed(row) is not None]
    start = f"{formatting.counted(len(rows), 'run')}"
    if not finished:
        return f"{start}, none of them finished."
    best = max(finished, key=lambda row: deployed(row) or 0.0)
    equal = [row for row in finished if formatting.percent(deployed(row)) == formatting.percent(deployed(best))]
    others = f" and {formatting.counted(len(equal) - 1, 'other')} are" if len(equal) > 1 else " is"
    return f"{start}; {Path(best.run or '').name}{others} the most accurate with {formatting.percent(deployed(best))}."
