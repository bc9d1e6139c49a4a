"""The comparison of a file in onnxruntime with the integer emulator, and the gate for files that differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qkd.errors import GateError
from qkd.export.emulator import emulate, first_divergence
from qkd.export.onnx_graph import invalid, load, require_provable
from qkd.export.op_counts import count_operators_of, layers_of
from qkd.export.session import open_session, optimized, read_metadata, run
from qkd.storage.environment import instructions
from qkd.tasks.classification import top1

SMALL = 32
"""Images for the comparisons that are slow and need no statistics: one by one, and without the optimizer."""
AGREEMENT_WITH_FLOAT_LAYERS = 99.0
"""Least top-1 agreement (%) with the emulator where layers stayed float: the order of their sums is not defined.

Their integer layers are then proven one by one, each from the integers that onnxruntime gave it."""


@dataclass(frozen=True)
class Verdict:
    """The results for one file. Accuracies and agreements in %, None where labels or reference were not given.

    census: how often each operator occurs in the graph that onnxruntime runs. equal_fraction: share of images whose every
    logit is equal, to the last bit, in onnxruntime and the emulator. largest_difference: of a logit between the two.
    first_divergence: the first layer whose integers differ, each layer compared by itself. float_layers: layers that
    onnxruntime runs in float; reasons: why, for those the export announced. same_in_batches: whether images give the same
    logits alone. optimizer_difference: largest difference of a logit between the optimized and the unoptimised graph, in
    standard deviations of the logits. agreement: top-1 of onnxruntime against the reference logits. same_as_reference:
    share of images whose every logit is equal, to the last bit, in onnxruntime and the reference. instructions: the best
    integer instructions of the processor. The names are the keys of ``export.json``.
    """

    file: str
    bytes: int
    images: int
    minimum_onnxruntime: str
    instructions: str
    census: Mapping[str, int]
    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    reasons: Mapping[str, str]
    equal_fraction: float
    largest_difference: float
    first_divergence: str | None
    same_in_batches: bool
    optimizer_difference: float
    emulator_agreement: float
    top1_emulator: float | None
    top1_onnxruntime: float | None
    top1_torch: float | None
    agreement: float | None
    same_as_reference: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return dataclasses.asdict(self)


def verify(
    file: str | Path,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    reference_logits: np.ndarray | None = None,
) -> Verdict:
    """Runs the file in onnxruntime and in the emulator on images as it takes them, and compares every logit.

    images: float32 (N, C, H, W), or uint8 in the file's layout. labels: (N,), for accuracies. reference_logits:
    (N, classes) of the fake-quantized network, for the agreement with training. Raises ExportError for a file that is
    broken or was not exported here. `require` decides about the verdict.
    """
    model = _checked(Path(file))
    session = open_session(file)
    found = run(session, images)
    emulated = emulate(model, images)
    graph = optimized(file)
    layers = layers_of(model, graph)
    equal = _same(found, emulated)
    few = images[:SMALL]
    unoptimised = run(open_session(file, optimize=False), few)
    return Verdict(
        file=str(file),
        bytes=Path(file).stat().st_size,
        images=len(images),
        minimum_onnxruntime=read_metadata(model).get("minimum_onnxruntime", ""),
        instructions=instructions(),
        census=count_operators_of(graph),
        integer_layers=layers.integer,
        float_layers=layers.floating,
        reasons=layers.reasons,
        equal_fraction=float(equal.mean()),
        largest_difference=float(np.abs(found - emulated).max()),
        first_divergence=_divergence(model, images, equal),
        same_in_batches=np.array_equal(run(session, few, batch=1), found[: len(few)]),
        optimizer_difference=float(np.abs(unoptimised - found[: len(few)]).max() / max(float(found.std()), 1e-12)),
        emulator_agreement=top1(found, emulated.argmax(1)),
        top1_emulator=None if labels is None else top1(emulated, labels),
        top1_onnxruntime=None if labels is None else top1(found, labels),
        top1_torch=None if reference_logits is None or labels is None else top1(reference_logits, labels),
        agreement=None if reference_logits is None else top1(found, reference_logits.argmax(1)),
        same_as_reference=None if reference_logits is None else float(_same(found, reference_logits).mean()),
    )


def require(verdict: Verdict) -> None:
    """Raises GateError naming every reason why a file must not be deployed; returns if there is none."""
    failures = _failures(verdict)
    if failures:
        raise GateError(f"{verdict.file}: " + "; ".join(failures), key="gate.not-proven")


def _failures(verdict: Verdict) -> list[str]:
    failures = []
    unexpected = [name for name in verdict.float_layers if name not in verdict.reasons]
    if unexpected:
        failures.append(f"onnxruntime runs {', '.join(unexpected)} in float, which the export meant to be integer")
    if not verdict.float_layers and verdict.equal_fraction < 1:
        failures.append(
            f"logits of {100 * (1 - verdict.equal_fraction):.3g} % of the images differ from the integer emulator, first "
            f"in {verdict.first_divergence or 'the logits alone'}{_saturation(verdict)}"
        )
    if verdict.float_layers and verdict.first_divergence:
        failures.append(f"integers differ from the emulator in {verdict.first_divergence}")
    if verdict.float_layers and verdict.emulator_agreement < AGREEMENT_WITH_FLOAT_LAYERS:
        failures.append(
            f"top-1 agrees with the integer emulator on {verdict.emulator_agreement:.4g} % of the images only"
        )
    agreement = 100.0 if verdict.agreement is None else verdict.agreement
    if not verdict.integer_layers and agreement < AGREEMENT_WITH_FLOAT_LAYERS:
        failures.append(f"a float network, and top-1 agrees with PyTorch on {agreement:.4g} % of the images only")
    if not verdict.same_in_batches and not verdict.float_layers:
        failures.append("an image gives other logits alone than in a batch")
    return failures


def _saturation(verdict: Verdict) -> str:
    """A hint for x86 without VNNI, which adds two products of 8-bit integers in 16 bits: they overflow beyond 7-bit weights."""
    if "vnni" in verdict.instructions or "avx" not in verdict.instructions:
        return ""
    return f"; this processor ({verdict.instructions}) is exact for weights of up to 7 bits only: use first: 7, last: 7"


def _checked(path: Path) -> onnx.ModelProto:
    model = load(path)
    require_provable(model, str(path))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise invalid(path, error) from error
    return model


def _divergence(model: onnx.ModelProto, images: np.ndarray, equal: np.ndarray) -> str | None:
    """The first layer that differs, on images whose logits differ; on any images where all logits are equal."""
    compared = images[~equal] if not equal.all() else images
    found = first_divergence(model, compared[:SMALL])
    return None if found is None else str(found)


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each image whether all its logits are equal to the last bit."""
    return np.asarray((one == other).all(axis=tuple(range(1, one.ndim))))
