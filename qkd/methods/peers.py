"""KD with peers: one teacher, several students that also teach each other (Niyaz & Bathula 2021)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.heads import mean_of_logits
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, label
from qkd.options import NotNegative, Positive

ENSEMBLE = "ensemble"


@published("Niyaz & Bathula, 2021", teachers=2, only_with=imitation_options())
def peers(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    taught: NotNegative = 1.0,
    shared: NotNegative = 1.0,
    teacher: Literal["learn", "frozen"] = "learn",
    product: Literal["student", "ensemble"] = "student",
) -> Plan:
    """One teacher, the first under ``teachers:``, and several students, which learn from it and from each other.

    ``L_i = CE_i + taught KL(p_T || p_i) + shared / (M - 1) sum_j KL(p_j || p_i)`` for M students, ``L_T = CE_T``, all at the
    same time, targets constant. Weights and temperature are not known to us.

    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``teacher: frozen``: it does not learn. * ``taught: 0`` or ``shared: 0``: without the teacher, without the peers.
    * ``product: ensemble``: all students and the mean of their logits, in one file; the paper's predictor.
    """
    leader, *fellows = setup.teachers
    students = [setup.student, *fellows]
    imitation = Imitation(logits, temperature, standardise, others)

    def terms(part: str) -> list[Term]:
        fellow = [name for name in students if name != part]
        from_teacher = [imitation.term(part, one(Tap(leader))) * taught] if taught else []
        from_peers = imitation.mutual(part, fellow, weight=shared) if shared else []
        return [label(part), *from_teacher, *from_peers]

    moving = [label(leader)] if teacher == "learn" else []
    learners = [*students, *([leader] if moving else [])]
    phase = Phase("train", (Step(learners, [*moving, *(term for part in students for term in terms(part))]),))
    if product == "student":
        return Plan((phase,))
    return Plan((phase,), heads=(mean_of_logits(ENSEMBLE, students, setup.classes),), product=ENSEMBLE)
