"""IAKD: interactive distillation, blocks of the teacher swapped into the student at random (Fu et al. 2020)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.exchange import Swap
from qkd.distill.method_info import published
from qkd.distill.plan import ADAPTERS, Learner, Phase, Plan, Setup, Step
from qkd.distill.schedules import Constant, Linear, Review, Schedule
from qkd.distill.terms import label
from qkd.options import Share


@published("Fu et al., 2020", teachers=1, most=1, match=True)
def iakd(
    setup: Setup,
    *,
    schedule: Literal["uniform", "linear", "review"] = "review",
    keep: Share = 0.5,
) -> Plan:
    """At each stage of each step either the student's or the teacher's layers are used, drawn at random.

    ``h' = a S(h) + (1 - a) T(h)`` with a = 1 with the scheduled probability; the loss is CE of the hybrid, whose
    classifier is always the student's. The frozen teacher passes gradients on; what enters a quantized student is rounded
    on the student's grid, the only one its next layer reads when it is deployed. In evaluation nothing is swapped.

    * ``schedule`` of the probability to keep the student's layers: always ``keep`` (uniform), from there to one (linear), or
      that again at half and three quarters, where the rate of ``train: {schedule: step}`` falls by default (review).

    Stages end at the layers of ``match:``. Where shapes differ, adapters out of the teacher and into it are learned.
    """
    keeps: dict[str, Schedule] = {"uniform": Constant(keep), "linear": Linear(keep, 1.0), "review": Review(keep, 1.0)}
    swap = Swap(setup.student, setup.teachers[0], setup.stages, keeps[schedule], setup.shapes)
    learners: list[str | Learner] = [setup.student, *([ADAPTERS] if len(swap.adapters) else [])]
    return Plan((Phase("train", (Step(learners, [label(setup.student)]),)),), exchange=swap)
