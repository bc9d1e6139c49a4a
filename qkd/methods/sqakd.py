"""SQAKD: label-free quantization-aware training from the network's own float copy (Zhao & Zhao, AISTATS 2024)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.heads import on_grid
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import hint, imitate, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive


@published(
    "Zhao & Zhao, AISTATS 2024",
    teachers=1,
    most=1,
    labels=False,
    only_with={"beta": ("feature", ("hint", "lattice"))},
)
def sqakd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    alpha: Positive = 1.0,
    gamma: NotNegative = 0.0,
    feature: Literal["none", "hint", "lattice"] = "none",
    beta: Positive = 1.0,
) -> Plan:
    """The student imitates the float network it was quantized from; labels are not used.

    ``gamma CE + alpha KL + beta L_feature``; the authors' code sets gamma and beta to zero, alpha to 1 at one and two
    bits and to 100 at W4A4 (which diverges on some networks without ``train: {clip: 5}``). The teacher is frozen.

    * ``gamma``: above zero, labels are used too, for comparison.
    * ``feature: hint``: equal the float copy's features at the layers of ``match:`` too. ``lattice``: equal them after they
      went through the student's own quantizers, so that both lie on the student's grid (the idea of SQuaT, 2026).
    """
    if feature != "none" and not setup.stages:
        raise PlanError(
            "sqakd with features needs matched layers: name them under `match:`, for example [layer1, layer2]",
            key="method.needs-matched-layers",
        )
    (teacher,) = setup.teachers
    terms = [imitate(setup.student, one(Tap(teacher)), temperature=temperature) * alpha]
    if gamma:
        terms.append(label(setup.student) * gamma)
    sources = {stage: Tap(teacher, stage) for stage in setup.stages} if feature != "none" else {}
    heads = [on_grid(tap, Tap(setup.student, stage)) for stage, tap in sources.items()] if feature == "lattice" else []
    read = [Tap(head.name) for head in heads] or sources.values()
    terms += [hint(Tap(setup.student, s), source) * beta for s, source in zip(sources, read, strict=True)]
    return Plan((Phase("train", (Step([setup.student], terms),)),), heads=tuple(heads))
