"""``qkd compare``: several runs in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qkd.storage.predictions import PairedRuns
    from qkd.storage.results import ComparedRun, ComparedSeeds


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    is_flag=True,
    help="Put runs that differ only in their seed into one row: mean ± sample standard deviation.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write a page (.html) or an image (.png): accuracy against latency and against size.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare(runs: tuple[Path, ...], seeds: bool, output: Path | None, as_json: bool) -> None:
    """Compare accuracy, size and speed of several runs, and every run with the first one image by image."""
    from qkd.report import compare as comparing
    from qkd.report.compare_page import Comparison, require_known, write
    from qkd.report.paired import pair_groups, pair_runs

    if output is not None:
        require_known(output)
    found = comparing.read_runs(runs)
    for warning in (line for run_data in found for line in run_data.warnings):
        click.echo(f"warning: {warning}", err=True)
    compared = Comparison(
        comparing.rows(found),
        pair_runs(found),
        comparing.by_recipe(found) if seeds else [],
        pair_groups(comparing.groups_of(found)) if seeds else [],
    )
    if as_json:
        parts = {name: [each.to_json() for each in part] for name, part in compared._asdict().items()}
        click.echo(json.dumps({name: part for name, part in parts.items() if seeds or "group" not in name}))
    else:
        show(compared.groups if seeds else compared.rows)
        _show_pairs(compared.group_pairs if seeds else compared.pairs)
        _show_combined(compared.rows)
    if output is not None:
        click.echo(f"{write(output, compared)}: written", err=True)


def show(rows: Sequence[ComparedRun | ComparedSeeds]) -> None:
    """Print the rows as a table."""
    from qkd.cli.output import print_table
    from qkd.report.compare_tables import table_of

    print_table(*table_of(rows), left=3)


def _show_pairs(pairs: Sequence[PairedRuns]) -> None:
    """Print what runs get right that the first one does not, and the other way round."""
    from qkd.cli.output import print_table, print_wrapped
    from qkd.report.compare_tables import left_out, pairs_about, pairs_table

    if any(pair.why_not is None for pair in pairs):
        print_wrapped(pairs_about(pairs))
        print_table(*pairs_table(pairs))
    for line in left_out(pairs):
        print_wrapped(line)


def _show_combined(rows: Sequence[ComparedRun]) -> None:
    """Print the combined teachers beside their best members, for runs that have one."""
    from qkd.cli.output import print_table, print_wrapped
    from qkd.report.compare_tables import COMBINED_ABOUT, combined_table

    header, lines = combined_table(rows)
    if lines:
        print_wrapped(COMBINED_ABOUT)
        print_table(header, lines)
