"""``qkd bench``: latency, size and accuracy on onnxruntime, float beside integer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


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
    help="float (the file beside), ptq (onnxruntime's own as well), none, or an ONNX file.",
)
@click.option("--batch", multiple=True, default=["1,8"], show_default=True, callback=numbers, help="Batch sizes.")
@click.option(
    "--threads", multiple=True, default=["1"], show_default=True, callback=numbers, help="Threads of onnxruntime."
)
@click.option("--seconds", default=1.0, show_default=True, help="How long each file runs per batch size and threads.")
@click.option("--memory", is_flag=True, help="Peak memory too, from a process for each file.")
@click.option("--openvino", is_flag=True, help="The same files in OpenVINO too, if it is installed.")
@click.option("--min-top1", type=float, metavar="PERCENT", help="Exit code 3 below this accuracy.")
@click.option("--max-p50-ms", type=float, metavar="MS", help="Exit code 3 if the median of a call takes longer.")
@click.option("--min-speedup", type=float, metavar="X", help="Exit code 3 if it is less over the file compared with.")
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="Exit code 3 if top-1 is further below the other file's."
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
    for warning in filter(None, (changed_since_export(Path(file)) for file in report["judged"])):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)
    require_gates(report, Gates(**gates))


def show(report: dict[str, Any]) -> None:
    """The rows as a table for people."""
    from rich.table import Table

    from qkd.cli.progress import console

    table = Table(title=f"onnxruntime on {report['processor']}", title_justify="left")
    names = called(report["rows"])
    memory = any(row["peak_mb"] is not None for row in report["rows"])
    for name in (
        "file",
        "batch",
        "threads",
        "p50 ms",
        "p95 ms",
        "images/s",
        "kB",
        "int convs",
        "speed-up",
        "top-1 %",
        *["peak MB"] * memory,
    ):
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    for row in report["rows"]:
        table.add_row(
            names[row["file"]] + (" (openvino)" if row["runtime"] == "openvino" else ""),
            str(row["batch"]),
            str(row["threads"]),
            f"{row['p50_ms']:.3f}",
            f"{row['p95_ms']:.3f}",
            f"{row['images_per_second']:.0f}",
            f"{row['bytes'] / 1000:.1f}",
            f"{row['integer_convs']}/{row['convs']}" if row["runtime"] == "onnxruntime" else "",
            "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            "" if row["top1"] is None else f"{row['top1']:.2f}",
            *[f"{row['peak_mb'] or 0:.1f}"] * memory,
        )
    console().print(table)
    for sentence in [*verdict(report["rows"]), *about(report["rows"][0]["instructions"])]:
        click.echo(sentence)


def about(instructions: str) -> list[str]:
    """What the processor's instructions mean for integers, where it matters."""
    if "avx" not in instructions or "vnni" in instructions:
        return []
    return [
        f"{instructions} without VNNI: integers gain less here, and 8-bit weights saturate in sums of two products; "
        f"weights of up to 7 bits (first: 7, last: 7) give the same logits everywhere"
    ]


def called(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What each file is called in the table: its name, with the folder before it where another has the same name."""
    files = [Path(file) for file in dict.fromkeys(row["file"] for row in rows)]
    names = [file.name for file in files]
    return {str(file): str(Path(*file.parts[-2:])) if names.count(file.name) > 1 else file.name for file in files}


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What the first row beside each file that others are compared with says, in words."""
    lines: list[str] = []
    names, others = called(rows), {row["file"]: row for row in reversed(rows) if row["file"] == row["beside"]}
    for file, other in reversed(others.items()):
        first = next((row for row in rows if row["beside"] == file != row["file"]), None)
        lines += [] if first is None else _said(first, other, rows, names)
    return lines


def _said(first: dict[str, Any], other: dict[str, Any], rows: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
    speed, size = first["speedup"], other["bytes"] / first["bytes"]
    faster = f"{speed:.2f}x as fast" if speed >= 1 else f"SLOWER, {speed:.2f}x the speed"
    smaller = f"{size:.1f}x smaller" if size >= 1 else f"LARGER, {1 / size:.1f}x the size"
    accuracy = f", top-1 {first['top1']:.2f} % ({other['top1']:.2f} %)" if first["top1"] is not None else ""
    elsewhere = [row for row in rows if row["agreement"] is not None and row["file"] == first["file"]][:1]
    return [
        f"{names[first['file']]} beside {names[other['file']]}: {faster} at batch {first['batch']}, {smaller}{accuracy}",
        *(f"openvino's top-1 is onnxruntime's on {row['agreement']:.2f} % of the images" for row in elsewhere),
    ]
