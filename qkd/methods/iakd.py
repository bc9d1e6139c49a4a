"""IAKD: interactive distillation, blocks of the teacher swapped into the student at random (Fu et al. 2020).

Teacher intervention (Kim et al. 2023) is a setting of it.
"""

from __future__ import annotations

from typing import Literal

from qkd.distill.exchange import Swap
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import ABOVE_ZERO, OnlyWith, published
from qkd.distill.plan import ADAPTERS, Learner, Phase, Plan, Setup, Step
from qkd.distill.schedules import Constant, Linear, Review, Schedule
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import label
from qkd.options import NotNegative, Positive, Share

ONLY_WITH: OnlyWith = {
    "until": ("schedule", ("linear",)),
    **imitation_options(("soft", (ABOVE_ZERO,))),
}


@published("Fu et al., 2020", teachers=1, most=1, match=True, only_with=ONLY_WITH)
def iakd(
    setup: Setup,
    *,
    schedule: Literal["uniform", "linear", "review"] = "review",
    keep: Share = 0.5,
    until: Share = 1.0,
    direction: Literal["both", "to_student"] = "both",
    soft: Share = 0.0,
    temperature: Positive = 4.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
) -> Plan:
    """At each stage of each step either the student's or the teacher's layers are used, drawn at random.

    ``h' = a S(h) + (1 - a) T(h)`` with a = 1 with the scheduled probability; the loss is CE of the hybrid, whose
    classifier is always the student's. The frozen teacher passes gradients on. What enters a quantized student is rounded on
    the student's grid, the only one its next layer reads when it is deployed; a teacher that continues from its own output
    reads that as it is. In evaluation nothing is swapped.

    * ``schedule`` of the probability to keep the student's layers: always ``keep`` (uniform), from there to one, which is
      reached at ``until`` of the training (linear), or that again at half and three quarters, where the rate of
      ``train: {schedule: step}`` falls by default (review).
    * ``direction``: whether the teacher, too, continues from the student's layers where they are kept, as in IAKD.
    * ``soft``: ``(1 - soft) CE + soft KL`` of the hybrid from the teacher's logits; IAKD has none. ``logits``,
      ``standardise``, ``others``: how logits are compared, see `Imitation`.

    Teacher intervention (Kim et al., EACL 2023, arXiv 2302.11812) is this with the student's own float copy as teacher,
    ``direction: to_student``, a soft loss, and the student alone from the middle of the training on: errors of rounded
    layers do not reach those behind them while these adapt. Departures: there, sub-layers of a transformer are replaced
    in a phase of its own, all of them or more from layer to layer, and hidden states are compared too.

    Stages end at the layers of ``match:``. Where shapes differ, adapters out of the teacher and into it are learned.
    """
    keeps: dict[str, Schedule] = {
        "uniform": Constant(keep),
        "linear": Linear(keep, 1.0, until),
        "review": Review(keep, 1.0),
    }
    (teacher,) = setup.teachers
    one_way = direction == "to_student"
    swap = Swap(setup.student, teacher, setup.stages, keeps[schedule], setup.shapes, to_student=one_way)
    learners: list[str | Learner] = [setup.student, *([ADAPTERS] if len(swap.adapters) else [])]
    terms = [label(setup.student) * (1 - soft)]
    if soft:
        imitation = Imitation(logits, temperature, standardise, others)
        terms.append(imitation.term(setup.student, one(Tap(teacher))) * soft)
    return Plan((Phase("train", (Step(learners, terms),)),), exchange=swap)
