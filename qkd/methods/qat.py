"""Quantization-aware training from the labels alone: the baseline of every method."""

from __future__ import annotations

from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.terms import label


@published("Jacob et al., CVPR 2018")
def qat(setup: Setup) -> Plan:
    """The student learns from the labels alone; teachers, if there are any, do not run."""
    return Plan((Phase("train", (Step([setup.student], [label(setup.student)]),)),))
