"""``qkd compare``: several runs in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--seeds", is_flag=True, help="Runs that differ only in their seed as one row: mean ± standard deviation."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Accuracy against latency and size: .html or .png."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare(runs: tuple[Path, ...], seeds: bool, output: Path | None, as_json: bool) -> None:
    """Accuracy, size and speed of several runs, side by side."""
    from qkd.report import compare as comparing
    from qkd.report.compare_page import require_known, write

    if output is not None:
        require_known(output)
    found = comparing.read_runs(runs)
    for warning in (line for evidence in found for line in evidence.warnings):
        click.echo(f"warning: {warning}", err=True)
    rows, groups = comparing.rows(found), comparing.by_recipe(found) if seeds else []
    if as_json:
        click.echo(json.dumps({"rows": rows, **({"groups": groups} if seeds else {})}))
    else:
        show(groups if seeds else rows)
    if output is not None:
        click.echo(f"{write(output, rows, groups)}: written", err=True)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from qkd.report.compare_page import table_of

    header, lines = table_of(rows)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 3 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    natural = Console(width=1000).measure(table).maximum  # a number folded into two lines cannot be read
    Console(width=natural).print(table)
