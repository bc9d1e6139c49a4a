"""Comparison: runs side by side as a page or a picture, accuracy against latency and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qkd.errors import UsageError
from qkd.report import formatting
from qkd.report.page import page
from qkd.report.pareto import PANELS, deployed, draw, figure, kinds_of, spots
from qkd.report.training_curves import Entry
from qkd.storage.atomic import write_atomic

ENDINGS = (".html", ".png")
COLUMNS = (
    ("float %", "float_top1", 1.0, 1),
    ("before %", "before_top1", 1.0, 1),
    ("after %", "top1", 1.0, 1),
    ("onnxruntime %", "top1_onnxruntime", 1.0, 1),
    ("kB", "bytes", 1e-3, 1),
    ("ms", "p50_ms", 1.0, 3),
    ("speed-up", "speedup", 1.0, 2),
    ("training s", "seconds", 1.0, 0),
)  # heading, key of a row, unit, digits
Row = Mapping[str, Any]


def require_known(output: Path) -> None:
    """Raises UsageError for a file that is neither a page nor a picture."""
    if output.suffix.lower() not in ENDINGS:
        raise UsageError(f"{output}: give a file that ends in {' or '.join(ENDINGS)}")


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of runs, or of groups of runs that differ in their seed."""
    first = ["run", "method", "product"]
    header = [*first, *(column[0] for column in COLUMNS), "seeds" if rows and "seeds" in rows[0] else "seed"]
    return header, [_line(row) for row in rows]


def _line(row: Row) -> list[str]:
    grouped = "seeds" in row
    names = [Path(name).name for name in (row["runs"] if grouped else [row["run"]])]
    product = f"{formatting.network(row['network'])} {row['bits'] or ''}".strip()
    first = [_together(names), str(row["method"] or formatting.MISSING), product]
    cells = [_cell(row[key], unit, digits) for _, key, unit, digits in COLUMNS]
    seeds = row["seeds"] if grouped else [row["seed"]]
    return [*first, *cells, ", ".join(formatting.MISSING if seed is None else str(seed) for seed in seeds)]


def _together(names: Sequence[str]) -> str:
    """What the names of several runs begin with, and how many they are."""
    if len(names) == 1:
        return names[0]
    shortest = min(names, key=len)
    alike = next(n for n in range(len(shortest), -1, -1) if all(name.startswith(shortest[:n]) for name in names))
    return f"{shortest[:alike].rstrip('-_ s') or names[0]} ({len(names)} runs)"


def _cell(value: Any, unit: float, digits: int) -> str:
    """A number, or the mean ± standard deviation of several."""
    mean, deviation = (value["mean"], value["std"]) if isinstance(value, Mapping) else (value, None)
    if mean is None:
        return formatting.MISSING
    spread = "" if deviation is None else f" ± {deviation * unit:.{digits}f}"
    return f"{mean * unit:.{digits}f}{spread}"


def write(output: Path, rows: Sequence[Row], groups: Sequence[Row] = ()) -> Path:
    """Write the comparison as a page or a picture, by the ending of the file. Raises UsageError, RunError."""
    require_known(output)
    if output.suffix.lower() == ".html":
        return write_atomic(output, lambda file: file.write(render(rows, groups).encode()))
    return write_atomic(output, lambda file: figure(rows).savefig(file, dpi=160, format="png"))  # type: ignore[arg-type]


def render(rows: Sequence[Row], groups: Sequence[Row] = ()) -> str:
    """The comparison as a self-contained page."""
    drawings = [(panel.title, draw(panel, spots(rows, panel))) for panel in PANELS]
    header, lines = table_of(rows)
    return page(
        "compare.html",
        sentence=sentence(rows),
        drawings=[(title, drawing) for title, drawing in drawings if drawing],
        legend=[Entry(number, kind) for number, kind in enumerate(_kinds(rows))],
        header=header,
        lines=lines,
        groups=table_of(groups) if groups else None,
    )


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(kind for panel in PANELS for kind in kinds_of(spots(rows, panel))))


def sentence(rows: Sequence[Row]) -> str:
    """The best run in words."""
    known = [row for row in rows if deployed(row) is not None]
    start = f"{formatting.counted(len(rows), 'run')}"
    if not known:
        return f"{start}, none of them finished."
    best = max(known, key=lambda row: deployed(row) or 0.0)
    equal = [row for row in known if formatting.percent(deployed(row)) == formatting.percent(deployed(best))]
    others = f" and {formatting.counted(len(equal) - 1, 'other')} are" if len(equal) > 1 else " is"
    return f"{start}; {Path(best['run']).name}{others} the most accurate with {formatting.percent(deployed(best))}."
