"""``qkd eval``: accuracy of a run or an ONNX file on test data."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qkd.cli.train import on_machine


@click.command("eval")
@click.argument("run_or_file", type=click.Path(path_type=Path))
@click.option(
    "--data", "recipe", help="Use the test data of this recipe; needed for an ONNX file outside a run folder."
)
@click.option(
    "--integer", is_flag=True, help="Run the ONNX file in the integer emulator: the accuracy of the deployed file."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@on_machine
def evaluate(
    run_or_file: Path, recipe: str | None, integer: bool, as_json: bool, device: str, threads: int | None
) -> None:
    """Measure top-1 of a run, or of an ONNX file, on the test split."""
    from qkd.pipeline.evaluate import evaluate_file_or_run, file_of
    from qkd.pipeline.export import changed_since_export

    file = file_of(run_or_file, integer)
    warning = "" if file is None else changed_since_export(file)
    if warning:
        click.echo(f"warning: {warning}", err=True)
    result = evaluate_file_or_run(run_or_file, recipe=recipe, integer=integer, device=device, threads=threads)
    sentence = f"{run_or_file}: {result.top1:.2f} % of {result.images} test images"
    click.echo(json.dumps(result.to_json()) if as_json else sentence)
