"""A file for a runtime that is not here, taken literally: every operator as ONNX defines it, float between quantizers.

That is what such a runtime promises up to its own rounding. It proves no bits, but a wrong scale, sign or zero point
shows: the logits are those of the fake-quantized network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qkd.errors import GateError
from qkd.export.emit import Emitted
from qkd.export.session import Source, open_session, run

MOST_APART, FEW = 0.01, 2
"""The share of images on which top-1 may differ from the fake-quantized network's, and so many images in any case."""


@dataclass(frozen=True)
class ReferenceRun:
    """What was found about one file for another runtime. Accuracies and agreement in %.

    coarsened: tensors that the target takes in fewer bits than they were trained in. largest_difference: of a logit from
    the fake-quantized network's, in standard deviations of the logits.
    """

    file: str
    bytes: int
    images: int
    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    reasons: Mapping[str, str]
    coarsened: tuple[str, ...]
    top1_literal: float
    top1_torch: float
    agreement: float
    largest_difference: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return dataclasses.asdict(self)


def reference_logits(source: Source, images: np.ndarray) -> np.ndarray:
    """Logits (N, classes) of onnxruntime without its optimizer, which would make other kernels of the operators."""
    return run(open_session(source, optimize=False), images)


def run_reference(
    emitted: Emitted, file: Path, images: np.ndarray, labels: np.ndarray, reference: np.ndarray
) -> ReferenceRun:
    """Runs a file literally on images as it takes them; ``reference`` are the fake-quantized network's logits."""
    found = reference_logits(file, images)
    return ReferenceRun(
        file=str(file),
        bytes=file.stat().st_size,
        images=len(images),
        integer_layers=emitted.integer_layers,
        float_layers=tuple(name for name, _ in emitted.float_layers),
        reasons=dict(emitted.float_layers),
        coarsened=emitted.coarsened,
        top1_literal=_percent(found.argmax(1) == labels),
        top1_torch=_percent(reference.argmax(1) == labels),
        agreement=_percent(found.argmax(1) == reference.argmax(1)),
        largest_difference=float(np.abs(found - reference).max() / max(float(reference.std()), 1e-12)),
    )


def require_agreement(trial: ReferenceRun, target: str) -> None:
    """Raises GateError for a file whose top-1 is not that of the network it was made from."""
    apart = round(trial.images * (100 - trial.agreement) / 100)
    if apart > max(MOST_APART * trial.images, FEW):
        why = f": {target} has 7 bits from zero up, and {', '.join(trial.coarsened)} had 8" if trial.coarsened else ""
        raise GateError(
            f"{trial.file}: top-1 agrees with the trained network on {trial.agreement:.4g} % of the images only{why}"
        )


def _percent(right: np.ndarray) -> float:
    return float(100 * right.mean())
