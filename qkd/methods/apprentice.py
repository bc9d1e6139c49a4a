"""Apprentice: a float teacher beside a low-bit student, in three schemes (Mishra & Marr, ICLR 2018)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.losses import soft_cross_entropy
from qkd.distill.method_info import ABOVE_ZERO, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import imitate, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive

STARTS = {"a": ("scratch", "scratch"), "b": ("scratch", "trained"), "c": ("trained", "trained")}  # student, teacher


@published(
    "Mishra & Marr, ICLR 2018",
    teachers=1,
    most=1,
    only_with={
        "alpha": ("scheme", ("a",)),
        "detach_target": ("scheme", ("a",)),
        "temperature": ("gamma", (ABOVE_ZERO,)),
    },
)
def apprentice(
    setup: Setup,
    *,
    scheme: Literal["a", "b", "c"] = "c",
    alpha: Positive = 1.0,
    beta: Positive = 0.5,
    gamma: NotNegative = 0.5,
    temperature: Positive = 1.0,
    detach_target: bool = True,
) -> Plan:
    """A low-bit student imitates the probabilities of a float teacher, which is trained beside it or before.

    ``alpha CE_T + beta CE_S + gamma H(p_T, p_S)`` (eq. 1); H is the cross-entropy with the teacher's probabilities.

    * ``a``: teacher and student learn together, both from scratch.
    * ``b``: a trained teacher is frozen (no CE_T), the student starts from scratch.
    * ``c``: a trained teacher is frozen, the student starts from its trained float weights and is fine-tuned.
    * ``detach_target``: off, H moves the teacher of scheme a too.

    The ``start_from:`` of each network (``scratch``; otherwise trained) has to fit the scheme.
    """
    (teacher,) = setup.teachers
    for part, wanted in zip((setup.student, teacher), STARTS[scheme], strict=True):
        found = "scratch" if setup.starts.get(part, wanted) == "scratch" else "trained"
        if found != wanted:
            hint = "scratch" if wanted == "scratch" else "float"
            raise PlanError(
                f"apprentice scheme {scheme} needs a {wanted} {part}: write `start_from: {hint}` in its entry",
                key="method.wrong-start",
            )
    soft = imitate(
        setup.student,
        one(Tap(teacher)),
        temperature=temperature,
        detach_target=detach_target,
        divergence=soft_cross_entropy,
    )
    terms = [label(setup.student) * beta, *([soft * gamma] if gamma else [])]
    if scheme != "a":
        return Plan((Phase("train", (Step([setup.student], terms),)),))
    return Plan((Phase("train", (Step(setup.all_networks, [label(teacher) * alpha, *terms]),)),))
