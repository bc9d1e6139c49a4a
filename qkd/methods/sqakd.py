"""SQAKD: label-free quantization-aware training from the network's own float copy (Zhao & Zhao, AISTATS 2024)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.heads import Head, in_interval, on_grid
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import OnlyWith, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import hint, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive

ONLY_WITH: OnlyWith = {
    **imitation_options(),
    "beta": ("feature", ("hint", "lattice")),
    "normalise": ("feature", ("lattice",)),
}


@published("Zhao & Zhao, AISTATS 2024", teachers=1, most=1, labels=False, only_with=ONLY_WITH, own_copy=True)
def sqakd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    alpha: Positive = 1.0,
    gamma: NotNegative = 0.0,
    feature: Literal["none", "hint", "lattice"] = "none",
    beta: Positive = 1.0,
    normalise: bool = False,
) -> Plan:
    """The student imitates the float network it was quantized from; labels are not used.

    ``gamma CE + alpha KL + beta L_feature``; the authors' code sets gamma and beta to zero, alpha to 1 at one and two
    bits and to 100 at W4A4 (which diverges on some networks without ``train: {clip: 5}``). The teacher is frozen.
    It needs ``seed: same`` in its entry, or the student's checkpoint, to begin with the student's float weights.

    * ``gamma``: above zero, labels are used too, for comparison.
    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`; ``dkd`` uses the labels.
    * ``feature: hint``: equal the float copy's features at the layers of ``match:`` too. ``lattice``: equal them after they
      went through the student's own quantizers, so that both lie on the student's grid (the idea of SQuaT, 2026).
    * ``normalise``: both in shares 0..1 of the student's interval, so that the loss does not depend on its width.

    SQuaT's released code is ``feature: lattice, normalise: true, alpha: 1, beta: 1`` at one place, the input of the last
    convolution of the last block (``match: [layer3.2.relu1]`` in a ResNet-20), and with ``gamma: 1``: its scripts use the
    labels, though the paper calls itself free of them. Departures here: the interval is a constant of the feature loss
    (there the student's own interval learns from it), and quantizer and optimizer are those of the recipe (there EWGS with
    scales from the Hessian, and Adam with a rate of 1e-3, of 1e-5 for the intervals, for 1200 epochs).
    """
    if feature != "none" and not setup.stages:
        raise PlanError(
            "sqakd with features needs matched layers: name them under `match:`, for example [layer1, layer2]",
            key="method.needs-matched-layers",
        )
    (teacher,) = setup.teachers
    imitation = Imitation(logits, temperature, standardise, others)
    terms = [imitation.term(setup.student, one(Tap(teacher))) * alpha]
    if gamma:
        terms.append(label(setup.student) * gamma)
    heads: list[Head] = []
    for stage in setup.stages if feature != "none" else ():
        own, source = Tap(setup.student, stage), Tap(teacher, stage)
        if feature == "lattice":
            heads.append(on_grid(source, own, in_shares=normalise))
            source = Tap(heads[-1].name)
        if normalise and feature == "lattice":
            heads.append(in_interval(own))
            own = Tap(heads[-1].name)
        terms.append(hint(own, source) * beta)
    return Plan((Phase("train", (Step([setup.student], terms),)),), heads=tuple(heads))
