"""The outcome of a run in one sentence and a few figures. Every number is read from a file of the run."""

from __future__ import annotations

from typing import NamedTuple

from qkd.report import formatting
from qkd.report.run_data import RunData, bits, exported_rows, headline_row, levels, mapping
from qkd.storage.artifacts import RESULT
from qkd.storage.json_record import is_number


class Figure(NamedTuple):
    """A number that the page shows in large type, its name and a note."""

    value: str
    name: str
    note: str = ""


def summary(run_data: RunData) -> str:
    """Accuracy beside that of the float network, then size, speed and parity of the file, as far as they were measured."""
    return "; ".join(filter(None, (_accuracy(run_data), _exported_file(run_data)))) + "."


def run_line(run_data: RunData) -> list[str]:
    """Run, method, seed and time, as far as they are known."""
    result = run_data.result
    seed = "" if result.seed is None else f"seed {result.seed}"
    time = "" if result.seconds is None else f"{formatting.duration(result.seconds)} in all"
    return [run_data.run.folder.resolve().name, *filter(None, (result.method, seed, time))]


def subject(run_data: RunData) -> str:
    """The product in words: ``2-bit resnet8 (4 weight levels)``."""
    build = str(run_data.student.get("build", "")).rpartition(":")[2] or run_data.run.folder.name
    found = bits(run_data.student)
    if found is None:
        return f"float {build}" if run_data.student else build
    weights, activations = found
    several = levels(run_data.student)
    there = f" ({several} levels)" if several else ""
    if weights == activations:
        return f"{weights}-bit {build}{there.replace(' levels', ' weight levels')}"
    return f"{build} with {weights}-bit weights{there} and {activations}-bit activations"


def _accuracy(run_data: RunData) -> str:
    top1, start = run_data.result.top1, run_data.result.float_top1
    if top1 is None:
        return _unfinished(run_data)
    beside = f" (float {formatting.percent(start)})" if start is not None else ""
    deployed = run_data.export.top1_onnxruntime
    differs = deployed is not None and formatting.percent(deployed) != formatting.percent(top1)
    there = f", {formatting.percent(deployed)} in onnxruntime" if differs else ""
    early = ", training stopped early" if run_data.result.finished is False else ""
    before = run_data.result.before_top1
    worse = f", {formatting.percent(before)} before training" if before is not None and before > top1 else ""
    return f"{subject(run_data)}: {formatting.percent(top1)} on test{beside}{there}{worse}{early}"


def _unfinished(run_data: RunData) -> str:
    done = run_data.epochs
    if damage := next((line for line in run_data.damaged if RESULT in line), ""):
        return f"{subject(run_data)}: {damage}"
    if not done:
        return f"{subject(run_data)}: not trained yet"
    planned = mapping(run_data.recipe.get("train")).get("epochs")
    of = f" of {planned}" if planned else ""
    best = max((line["val/top1"] for line in done if is_number(line.get("val/top1"))), default=None)
    so_far = f", {formatting.percent(best)} on validation so far" if best is not None else ""
    return f"{subject(run_data)}: not finished, {len(done)}{of} epochs done{so_far}"


def _exported_file(run_data: RunData) -> str:
    export, clauses = run_data.export, []
    smaller, faster = smaller_by(run_data), faster_by(run_data)
    if smaller is not None:
        clauses.append(formatting.times(smaller, "smaller", "larger"))
    if faster is not None:
        clauses.append(formatting.times(faster, "faster", "slower"))
    text = f"the ONNX file is {' and '.join(clauses)}" if clauses else ""
    equal = export.equal_fraction
    if equal is not None:
        lead = ", " if text else "the ONNX file is "
        text += f"{lead}equal to the integer emulator on {formatting.share(equal)} of the test images"
    left = export.float_layers or ()
    return text + (f", {formatting.counted(len(left), 'layer')} in float" if left else "")


def smaller_by(run_data: RunData) -> float | None:
    """Bytes of the float file over bytes of the exported one."""
    own, start = run_data.export.bytes, run_data.export.float_bytes
    return start / own if own and start else None


def faster_by(run_data: RunData) -> float | None:
    """Speed-up of the exported file over the float one, at the smallest batch that was measured."""
    return headline_row([row for row in exported_rows(run_data) if row.speedup is not None]).speedup


def figures(run_data: RunData) -> list[Figure]:
    """The most important numbers; what was not measured is left out."""
    found = [*_accuracy_figures(run_data), *_file_figures(run_data)]
    return [figure for figure in found if figure.value != formatting.MISSING]


def _accuracy_figures(run_data: RunData) -> list[Figure]:
    top1, start = run_data.result.top1, run_data.result.float_top1
    lost = "" if top1 is None or start is None else f"{top1 - start:+.1f} points against float".replace("-", "−")
    return [Figure(formatting.percent(top1), "on test", lost)]


def _file_figures(run_data: RunData) -> list[Figure]:
    found = []
    export, smaller, faster = run_data.export, smaller_by(run_data), faster_by(run_data)
    if smaller is not None:
        sizes = f"{formatting.size(export.bytes)}, float {formatting.size(export.float_bytes)}"
        found.append(Figure(f"{smaller:.1f}x", "smaller", sizes))
    if faster is not None:
        row = headline_row(exported_rows(run_data))
        at = f"{formatting.milliseconds(row.p50_ms)} at batch {row.batch}"
        threads = formatting.counted(row.threads or 1, "thread")
        found.append(Figure(f"{faster:.1f}x", "the speed of float", f"{at}, {threads}"))
    if export.equal_fraction is not None:
        note = "of the test images" if export.images is None else f"of {export.images:,} test images"
        found.append(Figure(formatting.share(export.equal_fraction), "equal to the emulator", note))
    return found
