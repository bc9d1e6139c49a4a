"""Knowledge distillation from frozen teachers (Hinton et al. 2015)."""

from __future__ import annotations

from qkd import targets
from qkd.bounds import Positive, Share
from qkd.errors import PlanError
from qkd.plan import Cast, Phase, Plan, Step
from qkd.taps import Tap
from qkd.terms import imitate, label


def kd(cast: Cast, *, temperature: Positive = 4.0, soft: Share = 0.9) -> Plan:
    """``(1 - soft) CE + soft KL`` with the mean of the teachers' logits; teachers are frozen.

    Source: Hinton, Vinyals & Dean 2015. The weights 0.1/0.9 at temperature 4 are those of the RepDistiller lineage, the
    protocol most later papers compare with.
    """
    if not cast.teachers:
        raise PlanError("kd needs a teacher: add one under `teachers:`, for example {float: {build: resnet20}}")
    target = targets.mean([Tap(t) for t in cast.teachers])
    terms = [label(cast.student) * (1 - soft), imitate(cast.student, target, temperature=temperature) * soft]
    return Plan((Phase("train", (Step([cast.student], terms),)),))
