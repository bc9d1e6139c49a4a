"""Writes a comparison of runs as a page or an image: accuracy against latency and against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkd.errors import UsageError
from qkd.report import formatting
from qkd.report.compare_tables import COMBINED_ABOUT, combined_table, left_out, pairs_about, pairs_table, table_of
from qkd.report.figure_svg import svg_of
from qkd.report.page import page
from qkd.report.pareto import PANELS, deployed, figure, kinds_of, points_of
from qkd.report.training_curves import Entry
from qkd.storage.atomic import write_atomic
from qkd.storage.predictions import PairedRuns
from qkd.storage.results import ComparedRun, ComparedSeeds

ENDINGS = (".html", ".png")


class Comparison(NamedTuple):
    """What ``qkd compare`` finds: runs, pairs of runs, and the same for runs that differ only in their seed."""

    rows: Sequence[ComparedRun]
    pairs: Sequence[PairedRuns] = ()
    groups: Sequence[ComparedSeeds] = ()
    group_pairs: Sequence[PairedRuns] = ()


def require_known(output: Path) -> None:
    """Raises UsageError for a file that is neither a page nor an image."""
    if output.suffix.lower() not in ENDINGS:
        raise UsageError(f"{output}: give a file that ends in {' or '.join(ENDINGS)}", key="compare.unknown-ending")


def write(output: Path, found: Comparison) -> Path:
    """Write the comparison as a page or an image, by the ending of the file. Raises UsageError, RunError."""
    require_known(output)
    if output.suffix.lower() == ".html":
        return write_atomic(output, lambda file: file.write(render(found).encode()))
    return write_atomic(output, lambda file: figure(found.rows, PANELS).savefig(file, dpi=160, format="png"))  # type: ignore[arg-type]


def render(found: Comparison) -> str:
    """The comparison as a self-contained page."""
    rows = found.rows
    panels = [(panel, points_of(rows, panel)) for panel in PANELS]
    drawings = [(panel.title, svg_of(figure(rows, [panel]), panel.label(points))) for panel, points in panels if points]
    header, lines = table_of(rows)
    return page(
        "compare.html",
        sentence=sentence(rows),
        drawings=drawings,
        legend=[Entry(number, kind) for number, kind in enumerate(kinds_of(rows))],
        header=header,
        lines=lines,
        pairs=_pairs(found.pairs),
        groups=table_of(found.groups) if found.groups else None,
        group_pairs=_pairs(found.group_pairs),
        combined=combined_table(rows),
        combined_about=COMBINED_ABOUT,
    )


class Pairs(NamedTuple):
    """A table of pairs with what it says, and the pairs that are left out of it."""

    about: str
    table: tuple[list[str], list[list[str]]] | None
    left_out: list[str]


def _pairs(pairs: Sequence[PairedRuns]) -> Pairs | None:
    """None for a single run."""
    if not pairs:
        return None
    compared = any(pair.why_not is None for pair in pairs)
    return Pairs(pairs_about(pairs), pairs_table(pairs) if compared else None, left_out(pairs))


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
