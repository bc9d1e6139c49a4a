"""Verdict: the outcome of a run in one sentence and a few figures. Every number in it stands in a file of the run."""

from __future__ import annotations

from typing import NamedTuple

from qkd.report import formatting
from qkd.report.run_data import RunData, bits, exported_rows, headline_row, is_number, mapping
from qkd.storage.artifacts import RESULT


class Figure(NamedTuple):
    """A number large enough to be read from across the room, and what it is."""

    value: str
    name: str
    note: str = ""


def summary(evidence: RunData) -> str:
    """The verdict: accuracy beside float, then size, speed and parity of the file as far as they were measured."""
    clauses = [_accuracy(evidence)]
    shipping = _shipping(evidence)
    if shipping:
        clauses.append(shipping)
    return "; ".join(clauses) + "."


def run_line(evidence: RunData) -> list[str]:
    """Run, method, seed and time, as far as they are known."""
    result = evidence.result
    said = [evidence.run.folder.resolve().name]
    said += [str(result["method"])] if "method" in result else []
    said += [f"seed {result['seed']}"] if "seed" in result else []
    return said + ([f"{formatting.duration(result['seconds'])} in all"] if "seconds" in result else [])


def subject(evidence: RunData) -> str:
    """The product in words: ``2-bit resnet8``."""
    build = str(evidence.student.get("build", "")).rpartition(":")[2] or evidence.run.folder.name
    found = bits(evidence.student)
    if found is None:
        return f"float {build}" if evidence.student else build
    weights, activations = found
    if weights == activations:
        return f"{weights}-bit {build}"
    return f"{build} with {weights}-bit weights and {activations}-bit activations"


def _accuracy(evidence: RunData) -> str:
    top1, start = evidence.result.get("top1"), evidence.result.get("float_top1")
    if top1 is None:
        return _unfinished(evidence)
    beside = f" (float {formatting.percent(start)})" if start is not None else ""
    deployed = evidence.export.get("top1_onnxruntime")
    differs = deployed is not None and formatting.percent(deployed) != formatting.percent(top1)
    there = f", {formatting.percent(deployed)} in onnxruntime" if differs else ""
    early = "" if evidence.result.get("finished", True) else ", training stopped early"
    before = evidence.result.get("before_top1")
    worse = f", {formatting.percent(before)} before training" if before is not None and before > top1 else ""
    return f"{subject(evidence)}: {formatting.percent(top1)} on test{beside}{there}{worse}{early}"


def _unfinished(evidence: RunData) -> str:
    done = evidence.epochs
    if damage := next((line for line in evidence.damaged if RESULT in line), ""):
        return f"{subject(evidence)}: {damage}"
    if not done:
        return f"{subject(evidence)}: not trained yet"
    planned = mapping(evidence.recipe.get("train")).get("epochs")
    of = f" of {planned}" if planned else ""
    best = max((line["val/top1"] for line in done if is_number(line.get("val/top1"))), default=None)
    so_far = f", {formatting.percent(best)} on validation so far" if best is not None else ""
    return f"{subject(evidence)}: not finished, {len(done)}{of} epochs done{so_far}"


def _shipping(evidence: RunData) -> str:
    export, clauses = evidence.export, []
    smaller, faster = smaller_by(evidence), faster_by(evidence)
    if smaller is not None:
        clauses.append(formatting.times(smaller, "smaller", "larger"))
    if faster is not None:
        clauses.append(formatting.times(faster, "faster", "slower"))
    text = f"the ONNX file is {' and '.join(clauses)}" if clauses else ""
    equal = export.get("equal_fraction")
    if equal is not None:
        lead = ", " if text else "the ONNX file is "
        text += f"{lead}equal to the integer emulator on {formatting.share(equal)} of the test images"
    left = export.get("float_layers") or []
    return text + (f", {formatting.counted(len(left), 'layer')} in float" if left else "")


def smaller_by(evidence: RunData) -> float | None:
    """Bytes of the float file over bytes of the exported one."""
    own, start = evidence.export.get("bytes"), evidence.export.get("float_bytes")
    return start / own if own and start else None


def faster_by(evidence: RunData) -> float | None:
    """Speed-up of the exported file over the float one, at the smallest batch that was measured."""
    return headline_row([row for row in exported_rows(evidence) if row.get("speedup") is not None]).get("speedup")


def figures(evidence: RunData) -> list[Figure]:
    """The few numbers to see first; what was not measured is left out."""
    found = [*_accuracy_figures(evidence), *_file_figures(evidence)]
    return [figure for figure in found if figure.value != formatting.MISSING]


def _accuracy_figures(evidence: RunData) -> list[Figure]:
    result = evidence.result
    top1, start = result.get("top1"), result.get("float_top1")
    lost = "" if top1 is None or start is None else f"{top1 - start:+.1f} points against float".replace("-", "−")
    return [Figure(formatting.percent(top1), "on test", lost)]


def _file_figures(evidence: RunData) -> list[Figure]:
    found = []
    export, smaller, faster = evidence.export, smaller_by(evidence), faster_by(evidence)
    if smaller is not None:
        sizes = f"{formatting.size(export['bytes'])}, float {formatting.size(export['float_bytes'])}"
        found.append(Figure(f"{smaller:.1f}x", "smaller", sizes))
    if faster is not None:
        row = headline_row(exported_rows(evidence))
        at = f"{formatting.milliseconds(row.get('p50_ms'))} at batch {row.get('batch')}"
        found.append(
            Figure(
                f"{faster:.1f}x", "the speed of float", f"{at}, {formatting.counted(row.get('threads', 1), 'thread')}"
            )
        )
    if "equal_fraction" in export:
        note = f"of {export['images']:,} test images" if "images" in export else "of the test images"
        found.append(Figure(formatting.share(export["equal_fraction"]), "equal to the emulator", note))
    return found
