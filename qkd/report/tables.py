"""The tables and bar charts of a report, as rows of text: accuracy, participants, cost, operators, environment."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from qkd.report import formatting
from qkd.report.charts import Bar, bar_chart
from qkd.report.run_data import RunData, file_name, is_float_file, mapping, scheme_title
from qkd.storage.artifacts import RECIPE
from qkd.storage.results import BenchRow, ParticipantCost, TrainingCost

MACHINE = ("--device", "--precision", "--threads")  # options of `qkd train` that change the result
STUDENT = "student"
COST_HEADER = ("part", "parameters", "forward ms", "forward and learn ms")


class Step(NamedTuple):
    """An accuracy on the way from the float network to the deployed file."""

    name: str
    top1: float
    note: str


class Part(NamedTuple):
    """A participant of the training and its accuracy at the end."""

    name: str
    build: str
    scheme: str
    top1: float | None


def steps(run_data: RunData) -> list[Step]:
    """Top-1 on test, from the float start to onnxruntime; what was not measured is left out."""
    result, export = run_data.result, run_data.export
    kind = "a float network" if export.integer_layers == () else "in integers"
    found = [
        ("float start", result.float_top1, "the network before quantization"),
        ("before training", run_data.before_top1, "quantized and calibrated"),
        ("after training", result.top1, "in PyTorch, rounding simulated"),
        ("in onnxruntime", export.top1_onnxruntime, f"the exported file, {kind}"),
        ("in the integer emulator", export.top1_emulator, "the file has to be equal to it"),
    ]
    return [Step(name, float(top1), note) for name, top1, note in found if top1 is not None]


def test_images(run_data: RunData) -> str:
    """The number of images that accuracy was measured on."""
    count = (run_data.data.images or {}).get("test")
    return "the test images" if count is None else formatting.counted(count, "test image")


def calibration_error(run_data: RunData) -> str:
    """The expected calibration error in a sentence; empty where it is not known."""
    error = run_data.result.ece
    if error is None:
        return ""
    return f"Expected calibration error after training: {formatting.percent(100 * error)}."


def cost_rows(run_data: RunData) -> list[list[str]]:
    """A row for each participant, below ``COST_HEADER``."""
    cost = run_data.result.cost
    participants = (cost.participants if cost else None) or {}
    return [[name, *_cost_cells(found)] for name, found in participants.items()]


def _cost_cells(cost: ParticipantCost) -> list[str]:
    values = ((cost.parameters, ",.0f"), (cost.forward_ms, ".1f"), (cost.learn_ms, ".1f"))
    return ["" if value is None else format(value, kind) for value, kind in values]


def cost_note(run_data: RunData) -> str:
    """What the table of costs holds, and the time and memory of training, as far as they are known."""
    seconds, cost = run_data.result.training_seconds, run_data.result.cost or TrainingCost()
    of = "" if cost.batch is None else f" of {formatting.counted(cost.batch, 'image')}"
    took = [] if seconds is None else [formatting.duration(seconds)]
    took += [] if cost.peak_memory_mb is None else [f"at most {cost.peak_memory_mb:,.0f} MiB of memory"]
    whole = f" All of training took {' and '.join(took)}." if took else ""
    return f"Each network by itself, one batch{of}.{whole}"


def parts(run_data: RunData) -> list[Part]:
    """The participants: the networks of the recipe, then what the method added."""
    top1 = run_data.result.parts or {}
    entries = {STUDENT: run_data.student, **mapping(run_data.recipe.get("teachers"))}
    networks = [(name, mapping(entry)) for name, entry in entries.items() if entry]
    found = [
        Part(name, f"view of {entry['of']}", "", top1.get(name))
        if "of" in entry
        else Part(name, formatting.network(entry.get("build")), scheme_title(entry), top1.get(name))
        for name, entry in networks
    ]
    added = [Part(name, "made by the method", "", top1[name]) for name in top1 if name not in entries]
    return found + added


def operator_counts(run_data: RunData) -> list[tuple[str, int]]:
    """How often each operator occurs in the graph that onnxruntime runs, the most frequent first."""
    found = run_data.export.operator_counts or {}
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))


def latency_chart(run_data: RunData) -> Markup:
    """The median time of one call, the exported file beside what it is compared with."""
    groups: dict[str, list[Bar]] = {}
    for row in run_data.rows:
        if row.p50_ms is not None:
            heading = f"batch {row.batch or 1}, {formatting.counted(row.threads or 1, 'thread')}"
            groups.setdefault(heading, []).append(_latency_bar(row, row.p50_ms))
    return bar_chart("Median latency", groups)


def _latency_bar(row: BenchRow, milliseconds: float) -> Bar:
    is_float = is_float_file(row)
    faster = "" if row.speedup is None or is_float else f", {row.speedup:.2f}x"
    written = f"{formatting.milliseconds(milliseconds)}{faster}"
    return Bar(Path(file_name(row.file)).stem[:9], milliseconds, written, "theirs" if is_float else "ours")


def size_chart(run_data: RunData) -> Markup:
    """The bytes of the exported file beside those of the float one."""
    own, start = run_data.export.bytes, run_data.export.float_bytes
    if not own or not start:
        return Markup("")
    bars = [Bar("student", own, formatting.size(own), "ours"), Bar("float", start, formatting.size(start), "theirs")]
    return bar_chart("Size of the file", {"": bars})


def environment(run_data: RunData) -> list[tuple[str, str]]:
    """Versions and processors that the results depend on: those of training, and of the benchmark where they differ."""
    found = run_data.environment
    rows = [(name, str(value)) for name, value in found.items() if name != "command" and value is not None]
    processor = run_data.bench.processor
    if processor and processor != found.get("processor"):
        rows.append(("processor of the benchmark", str(processor)))
    return rows


def commands(run_data: RunData) -> list[str]:
    """The command lines that repeat the run, from the folder that the report was written from."""
    folder = str(run_data.run.folder)
    again = f"{folder}-again"
    train = ["qkd", "train", str(Path(folder) / RECIPE), "--out", again, *_machine(run_data)]
    lines = [train, ["qkd", "export", again], ["qkd", "bench", again], ["qkd", "compare", folder, again]]
    return [shlex.join(line) for line in lines]


def _machine(run_data: RunData) -> list[str]:
    """The options of ``MACHINE`` that the run was started with."""
    words = str(run_data.environment.get("command", "")).split()
    joined = [word for word in words if word.partition("=")[0] in MACHINE and "=" in word]
    return joined + [word for pair in pairwise(words) if pair[0] in MACHINE for word in pair]
