"""The unoptimised reference run of a file for another runtime: every operator as ONNX defines it, float between quantizers.

That is what such a runtime computes up to its own rounding. It proves no bits, but it finds a wrong scale, sign or zero
point: the logits have to be those of the fake-quantized network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qkd.errors import GateError
from qkd.export.emission import Emitted
from qkd.export.session import Source, open_session, run
from qkd.tasks.classification import top1

MOST_APART, FEW = 0.01, 2
"""The share of images on which top-1 may differ from the fake-quantized network's, and a number allowed in any case."""


@dataclass(frozen=True)
class ReferenceRun:
    """The results for one file for another runtime. Accuracies and agreement in %; the names are the keys of the report.

    coarsened: quantizers that the target has in fewer bits than they were trained in. top1_literal: of the unoptimised
    reference run; top1_torch: of the fake-quantized network. agreement: of the top-1 of both. largest_difference: of a
    logit from the fake-quantized network's, in standard deviations of the logits.
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
    """Logits (N, classes) of onnxruntime without its optimizer, which would replace the operators by other kernels.

    ``images`` as the file takes them. Raises ExportError for a file that cannot run.
    """
    return run(open_session(source, optimize=False), images)


def run_reference(
    emitted: Emitted, file: Path, images: np.ndarray, labels: np.ndarray, reference: np.ndarray
) -> ReferenceRun:
    """Runs a file unoptimised on images as it takes them, and compares it with the fake-quantized network.

    images: as the file takes them. labels: (N,). reference: the network's logits (N, classes).
    """
    found = reference_logits(file, images)
    return ReferenceRun(
        file=str(file),
        bytes=file.stat().st_size,
        images=len(images),
        integer_layers=emitted.integer_layers,
        float_layers=tuple(name for name, _ in emitted.float_layers),
        reasons=dict(emitted.float_layers),
        coarsened=emitted.coarsened,
        top1_literal=top1(found, labels),
        top1_torch=top1(reference, labels),
        agreement=top1(found, reference.argmax(1)),
        largest_difference=float(np.abs(found - reference).max() / max(float(reference.std()), 1e-12)),
    )


def require_agreement(found: ReferenceRun, target: str) -> None:
    """Raises GateError for a file whose top-1 is not that of the network it was made from."""
    apart = round(found.images * (100 - found.agreement) / 100)
    if apart > max(MOST_APART * found.images, FEW):
        why = f": {target} has 7 bits from zero up, and {', '.join(found.coarsened)} had 8" if found.coarsened else ""
        raise GateError(
            f"{found.file}: top-1 agrees with the trained network on {found.agreement:.4g} % of the images only{why}",
            key="gate.top1-agreement",
        )
