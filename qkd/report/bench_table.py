"""The rows of a benchmark as a table and sentences, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qkd.report import formatting
from qkd.storage.results import BenchRow

MISSING = ""
Names = dict[str, str]  # path of a file -> its name in the table


class Column(NamedTuple):
    """A heading, the unit below it, and the cell of a row."""

    name: str
    unit: str
    cell: Callable[[BenchRow], str]


COLUMNS = (
    Column("batch", "", lambda row: _written(row.batch, "d")),
    Column("threads", "", lambda row: _written(row.threads, "d")),
    Column("median", "ms", lambda row: formatting.three_digits(row.p50_ms)),
    Column("95 %", "ms", lambda row: formatting.three_digits(row.p95_ms)),
    Column("images", "per s", lambda row: _written(row.images_per_second, ",.0f")),
    Column("size", "kB", lambda row: _written(None if row.bytes is None else row.bytes / 1000, ".1f")),
    Column("int", "convs", lambda row: _integer_convolutions(row)),
    Column("speed-up", "", lambda row: _written(row.speedup, ".2f", "x")),
    Column("top-1", "%", lambda row: _written(row.top1, ".2f")),
)
MEMORY = Column("peak", "MB", lambda row: _written(row.peak_mb or 0, ".1f"))


def bench_table(rows: Sequence[BenchRow]) -> tuple[list[str], list[list[str]]]:
    """Header and lines. A heading with a unit has two lines; the peak of memory is a column where it was measured."""
    names = short_names(rows)
    columns = [*COLUMNS, *([MEMORY] if any(row.peak_mb is not None for row in rows) else [])]
    header = ["file", *(f"{column.name}\n{column.unit}".strip() for column in columns)]
    lines = [[_file(row, names), *(column.cell(row) for column in columns)] for row in rows]
    return header, lines


def short_names(rows: Sequence[BenchRow]) -> Names:
    """What each file is called in the table: its name, with its folder before it where another file has the same name."""
    files = [Path(file) for file in dict.fromkeys(row.file for row in rows if row.file is not None)]
    names = [file.name for file in files]
    return {str(file): str(Path(*file.parts[-2:])) if names.count(file.name) > 1 else file.name for file in files}


def _file(row: BenchRow, names: Names) -> str:
    name = names.get(str(Path(row.file)), row.file) if row.file is not None else MISSING
    return f"{name} (openvino)" if row.runtime == "openvino" else name


def _integer_convolutions(row: BenchRow) -> str:
    measured = row.runtime == "onnxruntime" and row.convs is not None
    return f"{row.integer_convs}/{row.convs}" if measured else MISSING


def _written(value: float | None, kind: str, behind: str = "") -> str:
    return MISSING if value is None else f"{value:{kind}}{behind}"


def bench_sentences(rows: Sequence[BenchRow]) -> list[str]:
    """One sentence for each file that others are compared with, and what the processor means for the figures."""
    names = short_names(rows)
    compared = {row.file: row for row in reversed(rows) if row.file == row.beside}
    sentences: list[str] = []
    for file, other in reversed(compared.items()):
        first = next((row for row in rows if row.beside == file != row.file), None)
        sentences += [] if first is None else _sentences(first, other, rows, names)
    return [*sentences, *processor_notes((rows[0].instructions or "") if rows else "")]


def _sentences(first: BenchRow, other: BenchRow, rows: Sequence[BenchRow], names: Names) -> list[str]:
    start = f"{names[first.file or '']} beside {names[other.file or '']}: "
    elsewhere = [row for row in rows if row.agreement is not None and row.file == first.file][:1]
    return [
        start + ", ".join(_comparison(first, other)),
        *(f"openvino's top-1 is onnxruntime's on {row.agreement:.2f} % of the images" for row in elsewhere),
    ]


def _comparison(first: BenchRow, other: BenchRow) -> list[str]:
    parts = []
    if first.speedup is not None:
        slower = first.speedup < 1
        speed = f"SLOWER, {first.speedup:.2f}x the speed" if slower else f"{first.speedup:.2f}x as fast"
        parts.append(f"{speed} at batch {first.batch}")
    if first.bytes and other.bytes:
        size = other.bytes / first.bytes
        parts.append(f"{size:.1f}x smaller" if size >= 1 else f"LARGER, {1 / size:.1f}x the size")
    if first.top1 is not None:
        beside = "" if other.top1 is None else f" ({other.top1:.2f} %)"
        parts.append(f"top-1 {first.top1:.2f} %{beside}")
    return parts


def processor_notes(instructions: str) -> list[str]:
    """What the processor's best integer instructions mean for the figures, where they matter."""
    if "avx" not in instructions or "vnni" in instructions:
        return []
    return [
        f"{instructions} without VNNI: integers gain less here, and 8-bit weights saturate in sums of two products; "
        f"weights of up to 7 bits (first: 7, last: 7) give the same logits everywhere"
    ]
