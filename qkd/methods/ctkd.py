"""CTKD: collaborative teaching, a scratch teacher and an expert (Zhao et al., IEEE Trans. Cybernetics 2022)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.heads import Head, adapt_shapes, trainable
from qkd.distill.imitation import ALL, Imitation, Logits, imitation_options
from qkd.distill.losses import Reduction
from qkd.distill.method_info import ABOVE_ZERO, OnlyWith, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, attend, label
from qkd.errors import PlanError, nearest
from qkd.options import NotNegative, Positive

ONLY_WITH: OnlyWith = {
    **imitation_options(),
    "standardise": ("logits", ALL),
    "imitation_weight": ("logits", ALL),
    "scratch": ("logits", ALL),
    "expert": ("attention", (ABOVE_ZERO,)),
    "reduction": ("attention", (ABOVE_ZERO,)),
}


@published("Zhao et al., IEEE Trans. Cybernetics 52(4), 2022", teachers=1, only_with=ONLY_WITH)
def ctkd(
    setup: Setup,
    *,
    scratch: str = "scratch",
    expert: str = "expert",
    logits: Literal[Logits, "none"] = "kl",
    imitation_weight: NotNegative = 1.0,
    temperature: Positive = 4.0,
    standardise: bool = False,
    others: NotNegative = 8.0,
    attention: NotNegative = 1000.0,
    reduction: Reduction = "mean",
) -> Plan:
    """Two teachers: one trained jointly from scratch (logits), one pretrained (attention maps).

    ``L_scratch = CE``; ``L_student = CE + imitation_weight D(z_S, z_scratch) + attention / 2 sum_j |A(F_S) - A(F_expert)|``.

    * ``scratch``, ``expert``: the names of the two teachers. Neither gets gradients from the student's losses; the scratch
      teacher learns from the labels alone, the expert is frozen. Give the first ``start_from: scratch``.
    * ``logits``, ``standardise``, ``others``: how the logits of the scratch teacher are imitated, see `Imitation`; ``none``
      leaves the scratch teacher out.
    * ``attention``: 0 leaves the expert out. Maps of two sizes are pooled to the smaller. The half is that of the
      attention-transfer paper's formula, so 1000 here is 500 of ``kd``'s. It is a weight of ``reduction: mean``; with sum or
      norm about 2 is as much (`attention_distance` says which weights are equal).

    The roles are the paper's; the formulas follow the two papers it builds on (co-trained boosters, attention transfer),
    and so do the weights: the paper's own are not known to us. With the student's width and more bits, the scratch teacher
    makes this a collaboration of quantized networks without an exchange.
    """
    terms: list[Term] = [label(setup.student)]
    heads: list[Head] = []
    learners = [setup.student]
    if logits != "none":
        _one_of(setup, scratch, "scratch", "trains with the student")
        learners.append(scratch)
        imitation = Imitation(logits, temperature, standardise, others)
        terms += [label(scratch), imitation.term(setup.student, one(Tap(scratch))) * imitation_weight]
    if attention:
        _one_of(setup, expert, "expert", "is trained already")
        if not setup.stages:
            raise PlanError(
                "ctkd: attention needs matched layers: name them under `match:`, or write `attention: 0`",
                key="method.needs-matched-layers",
            )
        for stage in setup.stages:
            own, source, more = adapt_shapes(
                Tap(setup.student, stage), Tap(expert, stage), setup.shapes, channels=False
            )
            heads += more
            terms.append(attend(own, source, reduction=reduction) * (attention / 2))
    return Plan((Phase("train", (Step([*learners, *trainable(heads)], terms),)),), heads=tuple(heads))


def _one_of(setup: Setup, name: str, option: str, what: str) -> None:
    if name not in setup.teachers:
        raise PlanError(
            f"ctkd needs a teacher that {what}: none is called {name!r}{nearest(name, setup.teachers)}; add it under "
            f"`teachers:` or name it with `method.{option}`; there are {', '.join(setup.teachers)}",
            key="method.no-such-teacher",
        )
