"""Knowledge distillation from frozen teachers, logits and features (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.feature_terms import LOSSES as FEATURES
from qkd.distill.feature_terms import Feature, feature_terms
from qkd.distill.heads import trainable
from qkd.distill.losses import Reduction
from qkd.distill.method_info import OnlyWith, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import mean
from qkd.distill.terms import Term, decouple, imitate, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive, Share

ONLY_WITH: OnlyWith = {
    "temperature": ("logits", ("kl", "dkd")),
    "soft": ("logits", ("kl", "dkd")),
    "others": ("logits", ("dkd",)),
    "feature_weight": ("feature", tuple(FEATURES)),
    "reduction": ("feature", ("attention",)),
}


@published("Hinton et al., 2015", teachers=1, only_with=ONLY_WITH)
def kd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    soft: Share = 0.9,
    logits: Literal["kl", "dkd", "none"] = "kl",
    others: NotNegative = 8.0,
    feature: Feature = "none",
    feature_weight: NotNegative | None = None,
    reduction: Reduction = "mean",
) -> Plan:
    """The student learns from the labels and from frozen teachers: their logits, and optionally their features.

    ``(1 - soft) CE + soft KL(mean of the teachers' logits) + feature_weight sum_l L_feature``; CE at full weight where no
    logits are imitated.

    * ``logits``: KL (Hinton et al. 2015; 0.1/0.9 at temperature 4 are the weights of the RepDistiller lineage, which most
      later papers compare with), DKD (Zhao et al. 2022, ``others`` being its beta; its authors write ``CE + DKD``, which
      is ``soft: 0.5`` at twice the rate), or labels and features alone.
    * ``feature``, at the layers of ``match:``: attention (Zagoruyko & Komodakis 2017), hint (FitNets, Romero et al. 2015),
      lattice (hints after the student's own quantizer), similarity (Tung & Mori 2019), relational (RKD, Park et al. 2019),
      contrastive (within the batch, after CRD). ``feature_weight`` null: the customary weight of each.
    * ``reduction`` of attention: the mean over positions, which shrinks with their number, their sum, or the Euclidean
      distance (`attention_distance` says which weights are equal).
    """
    if feature != "none" and not setup.stages:
        raise PlanError(
            f"kd with feature: {feature} needs matched layers: name them under `match:`, e.g. [layer1, layer2]",
            key="method.needs-matched-layers",
        )
    target, terms = (
        mean([Tap(t) for t in setup.teachers]),
        [label(setup.student) * (1 - soft if logits != "none" else 1.0)],
    )
    if logits == "kl":
        terms.append(imitate(setup.student, target, temperature=temperature) * soft)
    if logits == "dkd":
        terms.append(decouple(setup.student, target, temperature=temperature, others=others) * soft)
    pairs = [(Tap(setup.student, s), Tap(t, s)) for t in setup.teachers for s in setup.stages]
    heads, more = feature_terms(feature, pairs, setup.shapes, feature_weight, reduction=reduction)
    learners = [setup.student, *trainable(heads)]
    every: list[Term] = [*terms, *more]
    return Plan((Phase("train", (Step(learners, every),)),), heads=heads)
