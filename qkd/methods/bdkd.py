"""BD-KD: online distillation that balances forward and reverse divergence per sample (Amara et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from qkd.distill.losses import balanced_divergence
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, imitate, label
from qkd.options import Bounds, NotNegative, Positive


@published("Amara et al., 2022, arXiv 2212.12965", teachers=1)
def bdkd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    emphasis: Annotated[float, Bounds(at_least=1)] = 2.0,
    weight: Positive = 1.0,
    teachers: Literal["learn", "frozen"] = "learn",
    regularise: NotNegative = 1.0,
) -> Plan:
    """Teacher and student learn together; per sample their entropies decide whether forward or reverse KL counts more.

    Student ``CE + weight (u KL(p_T || p_S) + v KL(p_S || p_T))`` with (u, v) = (emphasis, 1) where the teacher's entropy is
    the larger one, else (1, emphasis). Teacher ``CE + regularise KL(p_S || p_T)``, the divergence that is the reverse one for
    the student, with gradients to the teacher: it keeps the teacher near the student. All targets are constant.

    * ``emphasis``: 1 weighs both equally (ablation). The rule is the paper's; this number, the temperature and the weights
      are not known to us.
    * ``teachers: frozen``, ``regularise: 0``: ablations. Several teachers share the weight.
    """
    balanced = partial(balanced_divergence, emphasis=emphasis)
    terms: list[Term] = [label(setup.student)]
    for teacher in setup.teachers:
        soft = imitate(setup.student, one(Tap(teacher)), temperature=temperature, divergence=balanced)
        terms.append(soft * (weight / len(setup.teachers)))
        if teachers == "learn":
            terms.append(label(teacher))
        if teachers == "learn" and regularise:
            terms.append(imitate(teacher, one(Tap(setup.student)), temperature=temperature) * regularise)
    return Plan((Phase("train", (Step(setup.all_networks if teachers == "learn" else [setup.student], terms),)),))
