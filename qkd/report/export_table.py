"""The report of an export as names and values, for the terminal and the page alike. What is not known is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from qkd.report import formatting
from qkd.storage.artifacts import INFER
from qkd.storage.results import ExportReport, UnprovenExportReport

Facts = list[tuple[str, str]]  # (name, value)


def export_rows(report: ExportReport, *, outdated: str = "") -> Facts:
    """What was found about a verified file. ``outdated``: a warning where the file has changed since. Empty for none."""
    if report.is_empty:
        return []
    found = [*_layers(report), ("warning", outdated), *_proof(report), *_accuracy(report), *_file(report)]
    return [(name, value) for name, value in found if value]


def unproven_rows(report: UnprovenExportReport) -> Facts:
    """What was found about a file for a runtime that is not installed here."""
    top1 = f"{formatting.percent(report.top1_unoptimised, 2)}, in PyTorch {formatting.percent(report.top1_torch, 2)}"
    found = [
        ("for", f"{report.target}, written as its documentation asks; not run there"),
        *_layers(report),
        ("top-1 without optimised operators", top1),
        ("top-1 agreement", _of_test_images(_fraction(report.agreement), report.images)),
        ("8 bits became 7", ", ".join(report.narrowed or ()) or "nowhere"),
        ("size", formatting.size(report.bytes)),
        ("weights stored as", report.storage or ""),
    ]
    return [(name, value) for name, value in found if value]


def _layers(report: ExportReport | UnprovenExportReport) -> Iterator[tuple[str, str]]:
    integers, floats, reasons = report.integer_layers, report.float_layers or (), report.reasons or {}
    if integers is not None:
        yield "layers in integers", f"{len(integers)} of {len(integers) + len(floats)}"
    for name in floats:
        yield "in float", f"{name}: {reasons[name]}" if name in reasons else name


def _two_bit_levels(report: ExportReport) -> str:
    """How many levels layers with weights of 2 bits have, which the bits alone do not say."""
    found = Counter(each.weight_levels for each in report.resolution or () if each.weight_bits == 2)
    counted = [f"{levels} levels" for levels in sorted(filter(None, found))]
    return " or ".join(counted)


def _proof(report: ExportReport) -> Iterator[tuple[str, str]]:
    agreement = _fraction(report.agreement)
    if report.integer_layers == ():
        yield "a float network; agrees with PyTorch", _of_test_images(agreement, report.images)
        return
    equal = _of_test_images(report.equal_fraction, report.images)
    yield "equal to the integer emulator", f"{equal}, every logit" if equal else ""
    if report.same_as_reference == 1:
        yield "equal to PyTorch's fake quantization", f"{_of_test_images(1.0, report.images)}, every logit"
    if report.compared_quantizers and report.same_integers is not None:
        same = formatting.share(report.same_integers / 100)
        yield "equal to PyTorch, layer by layer", f"{same} of the integers, the rest within rounding"
    yield "same top-1 class as in PyTorch", _of_test_images(agreement, None)
    yield "one image at a time as in a batch", {None: "", True: "equal", False: "differs"}[report.same_in_batches]
    yield "first difference", report.first_divergence or ""


def _accuracy(report: ExportReport) -> Iterator[tuple[str, str]]:
    rounded = "" if report.integer_layers == () else " (fake quantization)"
    for name, top1 in ((f"PyTorch{rounded}", report.top1_torch), ("onnxruntime", report.top1_onnxruntime)):
        yield f"top-1 in {name}", "" if top1 is None else formatting.percent(top1, 2)
    if report.openvino is not None:
        share = _of_test_images(_fraction(report.openvino.agreement), None)
        yield (
            "top-1 in openvino",
            f"{formatting.percent(report.openvino.top1, 2)}, the class of onnxruntime for {share}",
        )


def _file(report: ExportReport) -> Iterator[tuple[str, str]]:
    yield "size", _size(report)
    yield "weights stored as", report.storage or ""
    yield "weights of 2 bits have", _two_bit_levels(report)
    yield "takes", _input(report)
    yield "needs onnxruntime", f">= {report.minimum_onnxruntime}" if report.minimum_onnxruntime else ""
    yield "resolution", "\n".join(_resolution(report)) if report.integer_layers else ""
    if report.input is not None:  # reports of older versions know neither the input nor the program
        yield "classifies image files", report.program or f"nothing: {INFER} beside it is your own and stays as it is"


def _size(report: ExportReport) -> str:
    if report.bytes is None:
        return ""
    if not report.bytes or report.float_bytes is None:
        return formatting.size(report.bytes)
    smaller = formatting.times(report.float_bytes / report.bytes, "smaller", "larger")
    return f"{formatting.size(report.bytes)}, float {formatting.size(report.float_bytes)} ({smaller})"


def _input(report: ExportReport) -> str:
    if report.input is None:
        return ""
    layout = (report.layout or "").upper()
    return f"raw images, uint8, {layout}" if report.input == "uint8" else "normalised images, float32, NCHW"


def _resolution(report: ExportReport) -> Iterator[str]:
    """How finely biases are rounded, in steps of the layer's output: the coarse layers, or the coarsest of fine ones."""
    layers = {each.layer: each for each in report.resolution or ()}
    if not report.coarse_layers:
        steps = [each.bias_step for each in layers.values() if each.bias_step is not None]
        yield f"bias steps of at most {max(steps, default=0):.3f} output steps" if layers else ""
        return
    for name in report.coarse_layers:
        if (found := layers.get(name)) and found.bias_step is not None and found.bias_error is not None:
            moved = f"rounding moved a bias by at most {found.bias_error:.2f}"
            yield f"{name}: a bias step is {found.bias_step:.2f} output steps; {moved}"


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _of_test_images(share: float | None, images: int | None) -> str:
    """A share, rounded down, in words; empty where it is not known."""
    count = "" if images is None else f"{images:,} "
    return "" if share is None else f"{formatting.share(share)} of the {count}test images"
