"""``qkd compare``: several runs in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
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
    """Compare accuracy, size and speed of several runs."""
    from qkd.report import compare as comparing
    from qkd.report.compare_page import require_known, write

    if output is not None:
        require_known(output)
    found = comparing.read_runs(runs)
    for warning in (line for run_data in found for line in run_data.warnings):
        click.echo(f"warning: {warning}", err=True)
    rows, groups = comparing.rows(found), comparing.by_recipe(found) if seeds else []
    if as_json:
        printed = {"rows": [row.to_json() for row in rows]}
        click.echo(json.dumps(printed | ({"groups": [group.to_json() for group in groups]} if seeds else {})))
    else:
        show(groups if seeds else rows)
    if output is not None:
        click.echo(f"{write(output, rows, groups)}: written", err=True)


def show(rows: Sequence[ComparedRun | ComparedSeeds]) -> None:
    """Print the rows as a table."""
    from qkd.cli.output import print_table
    from qkd.report.compare_page import table_of

    print_table(*table_of(rows), left=3)
