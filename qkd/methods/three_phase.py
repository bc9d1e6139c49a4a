"""QKD: self-studying, co-studying and tutoring (Kim et al. 2019)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import published
from qkd.distill.plan import Learner, Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import mean, one
from qkd.distill.terms import Term, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive


@published("Kim et al., 2019, arXiv 1911.12491", teachers=1, only_with=imitation_options())
def three_phase(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    weight: Positive = 1.0,
    self_studying: NotNegative = 30.0,
    co_studying: NotNegative = 100.0,
    tutoring: NotNegative = 70.0,
    answer: bool = True,
    teacher_rate: Positive = 1.0,
    schedule: Literal["one", "per_phase"] = "one",
) -> Plan:
    """The student learns alone, then together with its teacher, then from the frozen teacher.

    Self-studying ``CE_S``; co-studying ``CE_S + weight KL(p_T || p_S)`` and ``CE_T + weight KL(p_S || p_T)``, targets
    constant; tutoring the student's half of that.

    * ``self_studying``, ``co_studying``, ``tutoring``: shares of the epochs; 0 leaves a phase out. 30-100-70 is what an
      independent re-implementation runs, the paper's own are not known to us.
    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``answer``: off, the teacher of co-studying learns from the labels alone, not from its student.
    * ``teacher_rate``: the teacher's learning rate as a share of the student's; a trained float teacher wants a small one.

    * ``schedule``: the student's rate schedule and momentum go on over its three phases, which are one training of it, or
      every phase begins them anew. Which of the two the paper has is not known to us.

    Several teachers co-study and tutor as one: the student imitates the mean of their logits.
    """
    alone = [label(setup.student)]
    imitation = Imitation(logits, temperature, standardise, others)
    taught = [*alone, imitation.term(setup.student, mean([Tap(t) for t in setup.teachers])) * weight]

    def terms(teacher: str) -> list[Term]:
        back = imitation.term(teacher, one(Tap(setup.student))) * weight
        return [label(teacher), *([back] if answer else [])]

    teaching = [term for teacher in setup.teachers for term in terms(teacher)]
    phases = (
        Phase("self-studying", (Step([setup.student], alone),), self_studying),
        Phase("co-studying", (Step(setup.all_networks, [*taught, *teaching]),), co_studying),
        Phase("tutoring", (Step([setup.student], taught),), tutoring),
    )
    chosen = tuple(phase for phase in phases if phase.share)
    if not chosen:
        raise PlanError(
            "three_phase: every phase has a share of 0; give at least one of them epochs", key="method.no-phase-left"
        )
    rates = {Learner(teacher): teacher_rate for teacher in setup.teachers}
    return Plan(chosen, rates=rates, one_schedule=frozenset({setup.student} if schedule == "one" else ()))
