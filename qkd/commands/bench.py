"""``qkd bench``: latency, size and accuracy on onnxruntime, float beside integer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """``1,8`` -> (1, 8)."""
    try:
        found = tuple(int(word) for word in value.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r}: give whole numbers from 1, separated by commas: 1,8")
    return found


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", default="float", show_default=True, help="float (the file beside), none, or an ONNX file.")
@click.option("--batch", default="1,8", show_default=True, callback=numbers, help="Batch sizes.")
@click.option("--threads", default="1", show_default=True, callback=numbers, help="Threads of onnxruntime.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each file runs per batch size and threads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench(
    files: tuple[Path, ...],
    against: str,
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Time ONNX FILES (or run folders) on onnxruntime, interleaved with their float counterpart."""
    from qkd.measure import measure

    report = measure(files, against=against, batches=batch, threads=threads, seconds=seconds)
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)


def show(report: dict[str, Any]) -> None:
    """The rows as a table for people."""
    from rich.table import Table

    from qkd.progress import console

    table = Table(title=f"onnxruntime on {report['processor']}", title_justify="left")
    for name in ("file", "batch", "threads", "p50 ms", "p95 ms", "images/s", "kB", "speed-up", "top-1 %"):
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    for row in report["rows"]:
        table.add_row(
            Path(row["file"]).name,
            str(row["batch"]),
            str(row["threads"]),
            f"{row['p50_ms']:.3f}",
            f"{row['p95_ms']:.3f}",
            f"{row['images_per_second']:.0f}",
            f"{row['bytes'] / 1000:.1f}",
            "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            "" if row["top1"] is None else f"{row['top1']:.2f}",
        )
    console().print(table)
    for sentence in verdict(report["rows"]):
        click.echo(sentence)


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What the first row that is compared with another says, in words."""
    first = next((row for row in rows if row["speedup"] not in (None, 1.0)), None)
    other = next((row for row in rows if row["speedup"] == 1.0), None)
    if first is None or other is None:
        return []
    speed, size = first["speedup"], other["bytes"] / first["bytes"]
    faster = f"{speed:.2f}x as fast" if speed >= 1 else f"SLOWER, {speed:.2f}x the speed"
    accuracy = f", top-1 {first['top1']:.2f} % ({other['top1']:.2f} %)" if first["top1"] is not None else ""
    return [
        f"{Path(first['file']).name} beside {Path(other['file']).name}: {faster} at batch {first['batch']}, "
        f"{size:.1f}x smaller{accuracy}"
    ]
