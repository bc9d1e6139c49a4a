"""Quantization-aware training from the labels alone: what every method has to beat."""

from __future__ import annotations

from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.terms import label


@published("Jacob et al., CVPR 2018")
def qat(setup: Setup) -> Plan:
    """Train the student on the labels. Teachers, if there are any, do not run."""
    return Plan((Phase("train", (Step([setup.student], [label(setup.student)]),)),))
