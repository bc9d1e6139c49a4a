"""Knowledge distillation from frozen teachers, logits and features (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.feature_terms import LOSSES as FEATURES
from qkd.distill.feature_terms import Feature, feature_terms
from qkd.distill.heads import trainable
from qkd.distill.imitation import ALL, Imitation, Logits, imitation_options
from qkd.distill.losses import Reduction
from qkd.distill.method_info import OnlyWith, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.schedules import course_of, remainder_of
from qkd.distill.taps import Tap
from qkd.distill.targets import Weigh, certainty, confidence, mean, mixed
from qkd.distill.terms import Term, label
from qkd.errors import PlanError
from qkd.options import NotNegative, Positive, Share, ShareCourse

WEIGHTS: dict[str, Weigh | None] = {"mean": None, "confident": confidence, "entropy": certainty}

ONLY_WITH: OnlyWith = {
    **imitation_options(),
    "standardise": ("logits", ALL),
    "soft": ("logits", ALL),
    "feature_weight": ("feature", tuple(FEATURES)),
    "reduction": ("feature", ("attention",)),
}


@published("Hinton et al., 2015", teachers=1, only_with=ONLY_WITH)
def kd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    soft: Share | ShareCourse = 0.9,
    logits: Literal[Logits, "none"] = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    teachers_weight: Literal["mean", "confident", "entropy"] = "mean",
    feature: Feature = "none",
    feature_weight: NotNegative | None = None,
    reduction: Reduction = "mean",
) -> Plan:
    """The student learns from the labels and from frozen teachers: their logits, and optionally their features.

    ``(1 - soft) CE + soft KL(mean of the teachers' logits) + feature_weight sum_l L_feature``; CE at full weight where no
    logits are imitated.

    * ``soft``: a number, or a line such as ``{from: 0.9, to: 0.5}`` over the training, ``until: 0.5`` over half of it: less
      of the teacher towards the end, as in GSLR (Gao et al. 2019, arXiv 1909.01688; the line is ours, their course is not
      known to us).
    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`; ``none``: labels and features alone.
      0.1/0.9 at temperature 4 are the weights of the RepDistiller lineage, which most later papers compare with. The authors
      of DKD write ``CE + DKD``, which is ``soft: 0.5`` at twice the rate, those of standardised logits ``0.1 CE + 9 KL`` at
      temperature 2.
    * ``feature``, at the layers of ``match:``: attention (Zagoruyko & Komodakis 2017), hint (FitNets, Romero et al. 2015),
      lattice (hints after the student's own quantizer), similarity (Tung & Mori 2019), relational (RKD, Park et al. 2019),
      contrastive (within the batch, after CRD). ``feature_weight`` null: the customary weight of each.
    * ``reduction`` of attention: the mean over positions, which shrinks with their number, their sum, or the Euclidean
      distance (`attention_distance` says which weights are equal).
    * ``teachers_weight``, of several teachers: ``mean`` of their logits. ``confident``: their probabilities, mixed for every
      image by how easy its label is to each (CA-MKD, Zhang et al. 2022). ``entropy``: by how sure each is (EBKD, Kwon et al.
      2020). Hints (and lattice) are weighed likewise, other features are not.
    """
    _check(setup, logits, feature, teachers_weight)
    weigh = WEIGHTS[teachers_weight]
    terms = [label(setup.student) * (remainder_of(soft) if logits != "none" else 1.0)]
    if logits != "none":
        imitation = Imitation(logits, temperature, standardise, others)
        taps = [Tap(t) for t in setup.teachers]
        target = mean(taps) if weigh is None else mixed(taps, weigh, temperature=imitation.softness)
        terms.append(imitation.term(setup.student, target) * course_of(soft))
    pairs = [(Tap(setup.student, s), Tap(t, s)) for t in setup.teachers for s in setup.stages]
    heads, more = feature_terms(feature, pairs, setup.shapes, feature_weight, weigh=weigh, reduction=reduction)
    learners = [setup.student, *trainable(heads)]
    every: list[Term] = [*terms, *more]
    return Plan((Phase("train", (Step(learners, every),)),), heads=heads)


def _check(setup: Setup, logits: str, feature: str, teachers_weight: str) -> None:
    if feature != "none" and not setup.stages:
        raise PlanError(
            f"kd with feature: {feature} needs matched layers: name them under `match:`, e.g. [layer1, layer2]",
            key="method.needs-matched-layers",
        )
    if teachers_weight != "mean" and (
        len(setup.teachers) < 2 or (logits == "none" and feature not in ("hint", "lattice"))
    ):
        raise PlanError(
            f"kd with teachers_weight: {teachers_weight} needs several teachers, and their logits or hints; found "
            f"{', '.join(setup.teachers)}, `logits: {logits}`, `feature: {feature}`",
            key="method.nothing-to-weigh",
        )
