"""``qkd report``: write a page about a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html, one self-contained page: accuracy, training curves, exported file, speed."""
    from qkd.report import read_run, write
    from qkd.storage.run import Run

    run_data = read_run(Run.open(run))
    for warning in run_data.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(write(run_data))
