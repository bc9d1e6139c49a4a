"""Tables: the outcome of a run, part by part and file by file, as rows of words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from qkd.report import formatting
from qkd.report.charts import Bar, bar_chart
from qkd.report.run_data import RunData, is_float_file, is_number, mapping, scheme_text
from qkd.storage.artifacts import RECIPE

MACHINE = ("--device", "--precision", "--threads")  # options of `qkd train` that change what comes out
STUDENT = "student"
COST_HEADER = ("part", "parameters", "forward ms", "forward and learn ms")
COST = {"parameters": ",.0f", "forward_ms": ".1f", "learn_ms": ".1f"}  # entries of result.json and how they are written


class Step(NamedTuple):
    """An accuracy on the way from the float network to the deployed file."""

    name: str
    top1: float
    note: str


class Part(NamedTuple):
    """A participant and how well it does at the end."""

    name: str
    build: str
    scheme: str
    top1: float | None


def steps(evidence: RunData) -> list[Step]:
    """Top-1 on test, from the float start to onnxruntime; what was not measured is left out."""
    result, export = evidence.result, evidence.export
    kind = "a float network" if export.get("integer_layers") == [] else "in integers"
    found = [
        ("float start", result.get("float_top1"), "the network before quantization"),
        ("before training", evidence.before_top1, "quantized and calibrated"),
        ("after training", result.get("top1"), "in PyTorch, rounding simulated"),
        ("in onnxruntime", export.get("top1_onnxruntime"), f"the exported file, {kind}"),
        ("in the integer emulator", export.get("top1_emulator"), "what the file has to equal"),
    ]
    return [Step(name, float(top1), note) for name, top1, note in found if isinstance(top1, int | float)]


def test_images(evidence: RunData) -> str:
    """On how many images accuracy was measured."""
    count = mapping(evidence.data.get("images")).get("test")
    return formatting.counted(count, "test image") if isinstance(count, int) else "the test images"


def calibration_error(evidence: RunData) -> str:
    """How far the product's confidence is from its accuracy, in words."""
    error = evidence.result.get("ece")
    if error is None:
        return ""
    return f"Expected calibration error after training: {formatting.percent(100 * error)}."


def cost_rows(evidence: RunData) -> list[list[str]]:
    """What each participant cost: parameters, milliseconds of one batch without and with learning."""
    participants = mapping(mapping(evidence.result.get("cost")).get("participants"))
    return [
        [name, *(format(facts[key], kind) if is_number(facts.get(key)) else "" for key, kind in COST.items())]
        for name, facts in participants.items()
        if isinstance(facts, Mapping)
    ]


def cost_note(evidence: RunData) -> str:
    """What was timed, and the time and memory of training, as far as they are known."""
    result, cost = evidence.result, mapping(evidence.result.get("cost"))
    of = f" of {formatting.counted(cost['batch'], 'image')}" if is_number(cost.get("batch")) else ""
    took = [formatting.duration(result["training_seconds"])] if "training_seconds" in result else []
    took += [f"at most {cost['peak_memory_mb']:,.0f} MiB of memory"] if is_number(cost.get("peak_memory_mb")) else []
    whole = f" All of training took {' and '.join(took)}." if took else ""
    return f"Each network by itself, one batch{of}.{whole}"


def parts(evidence: RunData) -> list[Part]:
    """Everybody who took part: networks of the recipe first, then what the method added."""
    top1 = mapping(evidence.result.get("parts"))
    entries = {STUDENT: evidence.student, **mapping(evidence.recipe.get("teachers"))}
    networks = [(name, mapping(entry)) for name, entry in entries.items() if entry]
    found = [
        Part(name, formatting.network(entry.get("build")), scheme_text(entry), top1.get(name))
        for name, entry in networks
    ]
    added = [Part(name, "made by the method", "", top1[name]) for name in top1 if name not in entries]
    return found + added


def export_rows(evidence: RunData) -> list[tuple[str, str]]:
    """What `qkd export` found, as names and values."""
    export = evidence.export
    if not export:
        return []
    integer, left = _count(export.get("integer_layers")), export.get("float_layers") or []
    reasons = mapping(export.get("reasons"))
    rows = [("layers in integers", f"{integer} of {integer + len(left)}")]
    rows += [("in float", f"{name}: {reasons[name]}" if name in reasons else str(name)) for name in left]
    rows += [
        ("warning", evidence.outdated),
        ("equal to the integer emulator", f"{formatting.share(export['equal_fraction'])} of the test images")
        if "equal_fraction" in export
        else ("", ""),
        (
            "same top-1 class as in PyTorch",
            _maybe(export.get("agreement"), lambda percent: formatting.share(percent / 100), " of the test images"),
        ),
        ("one by one as in a batch", _yes(export.get("same_in_batches"))),
        ("first difference", str(export.get("first_divergence") or "")),
        ("size", _maybe(export.get("bytes"), formatting.size)),
        ("size of the float file", _maybe(export.get("float_bytes"), formatting.size)),
        ("weights stored as", str(export.get("storage", ""))),
        ("needs onnxruntime", _maybe(export.get("minimum_onnxruntime"), lambda version: f">= {version}")),
    ]
    return [(name, value) for name, value in rows if value]


def _count(layers: Any) -> int:
    return layers if isinstance(layers, int) else len(layers or [])


def _maybe(value: Any, show: Any, behind: str = "") -> str:
    return "" if value is None or value == "" else f"{show(value)}{behind}"


def _yes(value: Any) -> str:
    return "" if value is None else "yes" if value else "no"


def census(evidence: RunData) -> list[tuple[str, int]]:
    """How often each operator occurs in the graph that onnxruntime runs."""
    found = mapping(evidence.export.get("census"))
    return sorted(((str(name), int(count)) for name, count in found.items()), key=lambda pair: (-pair[1], pair[0]))


def bench_rows(evidence: RunData) -> list[list[str]]:
    """The rows of the benchmark in words."""
    return [
        [
            Path(row["file"]).name,
            str(row.get("batch", "")),
            str(row.get("threads", "")),
            formatting.milliseconds(row.get("p50_ms")),
            formatting.milliseconds(row.get("p95_ms")),
            _maybe(row.get("images_per_second"), lambda value: f"{value:,.0f}"),
            formatting.size(row.get("bytes")),
            _maybe(row.get("speedup"), lambda value: f"{value:.2f}x"),
            formatting.percent(row.get("top1")),
        ]
        for row in evidence.rows
    ]


BENCH_HEADER = ("file", "batch", "threads", "median", "95 % within", "images/s", "size", "speed-up", "top-1")


def latency_chart(evidence: RunData) -> Markup:
    """The median time of one call, the exported file beside what it is compared with."""
    groups: dict[str, list[Bar]] = {}
    for row in evidence.rows:
        if row.get("p50_ms") is not None:
            batch, threads = row.get("batch", 1), row.get("threads", 1)
            heading = f"batch {batch}, {formatting.counted(threads, 'thread')}"
            groups.setdefault(heading, []).append(_latency_bar(row))
    return bar_chart("Median latency", groups)


def _latency_bar(row: Mapping[str, Any]) -> Bar:
    name = Path(row["file"]).stem
    theirs = is_float_file(row)
    ratio = row.get("speedup")
    faster = f", {ratio:.2f}x" if ratio is not None and not theirs else ""
    return Bar(
        name[:9], row["p50_ms"], f"{formatting.milliseconds(row['p50_ms'])}{faster}", "theirs" if theirs else "ours"
    )


def size_chart(evidence: RunData) -> Markup:
    """The bytes of the exported file beside those of the float one."""
    own, start = evidence.export.get("bytes"), evidence.export.get("float_bytes")
    if not own or not start:
        return Markup("")
    bars = [Bar("student", own, formatting.size(own), "ours"), Bar("float", start, formatting.size(start), "theirs")]
    return bar_chart("Size of the file", {"": bars})


def environment(evidence: RunData) -> list[tuple[str, str]]:
    """Versions and processors a result depends on: of training, and of the benchmark where they differ."""
    found = evidence.environment
    rows = [(name, str(value)) for name, value in found.items() if name != "command" and value is not None]
    processor = evidence.bench.get("processor")
    if processor and processor != found.get("processor"):
        rows.append(("processor of the benchmark", str(processor)))
    return rows


def commands(evidence: RunData) -> list[str]:
    """What repeats the run, from the folder it was reported from."""
    folder = str(evidence.run.folder)
    again = f"{folder}-again"
    train = ["qkd", "train", str(Path(folder) / RECIPE), "--out", again, *_machine(evidence)]
    lines = [train, ["qkd", "export", again], ["qkd", "bench", again], ["qkd", "compare", folder, again]]
    return [shlex.join(line) for line in lines]


def _machine(evidence: RunData) -> list[str]:
    """The machine's options as the run was started with."""
    said = str(evidence.environment.get("command", "")).split()
    joined = [word for word in said if word.partition("=")[0] in MACHINE and "=" in word]
    return joined + [word for pair in pairwise(said) if pair[0] in MACHINE for word in pair]
