"""``qkd bench``: latency, size and accuracy of files on onnxruntime, beside their float counterpart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qkd.storage.results import BenchReport


def numbers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """``1,8``, or an option given for each of them -> (1, 8)."""
    try:
        found = tuple(dict.fromkeys(int(word) for value in values for word in value.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{','.join(values)!r}: give whole numbers from 1, separated by commas: 1,8")
    return found


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    default="float",
    show_default=True,
    help="What to compare with: float (the float file beside), ptq (also onnxruntime's own quantization of it), none, "
    "or an ONNX file.",
)
@click.option("--batch", multiple=True, default=["1,8"], show_default=True, callback=numbers, help="Batch sizes.")
@click.option(
    "--threads", multiple=True, default=["1"], show_default=True, callback=numbers, help="Threads of onnxruntime."
)
@click.option("--seconds", default=1.0, show_default=True, help="How long each file runs per batch size and threads.")
@click.option("--memory", is_flag=True, help="Measure peak memory as well, in a process of its own for each file.")
@click.option("--openvino", is_flag=True, help="Time the same files in OpenVINO as well, if it is installed.")
@click.option("--min-top1", type=float, metavar="PERCENT", help="Exit code 3 below this accuracy.")
@click.option("--max-p50-ms", type=float, metavar="MS", help="Exit code 3 if the median of a call takes longer.")
@click.option("--min-speedup", type=float, metavar="X", help="Exit code 3 if the speed-up over the other file is less.")
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="Exit code 3 if top-1 is further below that of the other file."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench(
    files: tuple[Path, ...],
    against: str,
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float,
    memory: bool,
    openvino: bool,
    as_json: bool,
    **gates: float | None,
) -> None:
    """Time ONNX FILES (or run folders) on onnxruntime, interleaved with their float counterpart."""
    from qkd.pipeline.benchmark import Gates, benchmark_files, require_gates
    from qkd.pipeline.export import changed_since_export

    settings: dict[str, Any] = {"batches": batch, "threads": threads, "seconds": seconds, "memory": memory}
    report = benchmark_files(files, against=against, openvino=openvino, **settings)
    for warning in filter(None, (changed_since_export(Path(file)) for file in report.judged or ())):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        show(report)
    require_gates(report, Gates(**gates))


def show(report: BenchReport) -> None:
    """Print the rows as a table, and a sentence for each comparison."""
    from qkd.cli.output import print_table, print_wrapped
    from qkd.report.bench_table import bench_sentences, bench_table

    rows = report.rows or ()
    click.echo(f"onnxruntime on {report.processor}")
    print_table(*bench_table(rows))
    for sentence in bench_sentences(rows):
        print_wrapped(sentence)
