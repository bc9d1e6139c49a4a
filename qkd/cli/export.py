"""``qkd export``: write a finished run as a verified ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkd.cli.choices import ChoiceOf

if TYPE_CHECKING:
    from qkd.storage.results import ExportReport, UnprovenExportReport


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write; beside x.onnx go x.float.onnx, x.export.json, x.infer.py.  [default: RUN/student.onnx]",
)
@click.option(
    "--storage",
    type=ChoiceOf("qkd.export.targets:Storage"),
    default="int8",
    show_default=True,
    help="packed: weights of 4 and 2 bits take 4 and 2 bits; needs a newer onnxruntime, which is printed.",
)
@click.option(
    "--input",
    type=ChoiceOf("qkd.export.targets:InputKind"),
    default="float",
    show_default=True,
    help="uint8: the file takes raw images and normalises them itself, to the same logits.",
)
@click.option(
    "--layout",
    type=ChoiceOf("qkd.export.targets:Layout"),
    default="nchw",
    show_default=True,
    help="Where the channels of raw images lie.",
)
@click.option(
    "--target",
    type=ChoiceOf("qkd.export.targets:TARGETS"),
    default="onnxruntime",
    show_default=True,
    help="openvino: run there too, if it is installed. tensorrt, litert: a file of its own, as their documents ask.",
)
@click.option("--require-integer", is_flag=True, help="Exit code 3 if a layer stays float.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def export(
    run: Path,
    output: Path | None,
    storage: Any,
    input: Any,
    layout: Any,
    target: str,
    require_integer: bool,
    as_json: bool,
) -> None:
    """Write the trained student of RUN as ONNX, proven equal to an integer emulator on the whole test split."""
    from qkd.errors import GateError
    from qkd.pipeline.export import export_run
    from qkd.storage.run import Run

    report = export_run(Run.open(run), output=output, storage=storage, input=input, layout=layout, target=target)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        show(report)
    if require_integer and report.float_layers:
        raise GateError(
            f"{report.file}: these layers stay float: {', '.join(report.float_layers)}", key="export.float-layers"
        )


def show(report: ExportReport | UnprovenExportReport) -> None:
    """Print what was found as a table."""
    from qkd.cli.output import print_facts
    from qkd.report.export_table import export_rows, unproven_rows
    from qkd.storage.results import ExportReport

    rows = export_rows(report) if isinstance(report, ExportReport) else unproven_rows(report)
    print_facts(report.file or "", rows)
