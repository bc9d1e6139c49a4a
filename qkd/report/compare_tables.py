"""The tables of a comparison, as rows of text for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qkd.quantizers.scheme import titled
from qkd.report import formatting
from qkd.report.collaboration import is_better_than_members, signed
from qkd.storage.predictions import PairedRuns
from qkd.storage.results import ComparedRun, ComparedSeeds, Spread

Row = ComparedRun | ComparedSeeds
COMBINED_ABOUT = "Combined teachers on test; better: by more than one standard error of the difference."
COMBINED_HEADER = ["run", "combined\n%", "best member\n%", "difference\npoints", "better", "disagree\n%"]


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


def pairs_about(pairs: Sequence[PairedRuns]) -> str:
    """What a table of pairs says."""
    beside = _common_name([Path(run).name for run in pairs[0].beside or ()])
    images = next((f"the same {pair.images:,} test images" for pair in pairs if pair.images), "the same test images")
    if pairs[0].seeds is None:
        return f"Beside {beside}, on {images}; p: McNemar's exact test."
    return f"Beside {beside}, in pairs of equal seeds, on {images}; p: exact sign test over images."


def pairs_table(pairs: Sequence[PairedRuns]) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each pair: the difference in points, the images that only one gets right, and p."""
    header = ["run", "difference\npoints", "right only\nhere", "right only\nin the first", "p"]
    over_seeds = any(pair.seeds for pair in pairs)
    return [*header, *(["seeds"] if over_seeds else [])], [_pair_line(pair, over_seeds) for pair in pairs]


def _pair_line(pair: PairedRuns, over_seeds: bool) -> list[str]:
    spread = "" if pair.std is None else f" ± {pair.std:.2f}"
    counts = [formatting.MISSING if count is None else f"{count:,}" for count in (pair.only_runs, pair.only_beside)]
    seeds = [", ".join(map(str, pair.seeds or ()))] if over_seeds else []
    name = _common_name([Path(run).name for run in pair.runs or ()])
    return [name, signed(pair.difference) + spread, *counts, formatting.probability(pair.p), *seeds]


def left_out(pairs: Sequence[PairedRuns]) -> list[str]:
    """A line for each pair that could not be compared, with the reason."""
    return [
        f"{_common_name([Path(run).name for run in pair.runs or ()])}: not compared image by image: {pair.why_not}"
        for pair in pairs
        if pair.why_not
    ]


def combined_table(rows: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each run with a combined teacher: its accuracy beside that of its best member."""
    lines = []
    for row in rows:
        if (found := row.combined) is not None:
            best = f"{found.best_member} {_number(found.best_top1)}"
            beside = f"{signed(found.difference)} ± {_number(found.standard_error)}"
            better = "yes" if is_better_than_members(found) else "no"
            cells = [_number(found.top1), best, beside, better, _number(found.disagreement, 1)]
            lines.append([Path(row.run or "").name, *cells])
    return COMBINED_HEADER, lines


def _number(value: float | None, digits: int = 2) -> str:
    return formatting.MISSING if value is None else f"{value:.{digits}f}"
