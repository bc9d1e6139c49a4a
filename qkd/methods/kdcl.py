"""KDCL: online distillation from one target built from the logits of all networks (Guo et al., CVPR 2020)."""

from __future__ import annotations

from typing import Literal

from qkd.distill import targets
from qkd.distill.epoch_statistics import ErrorCovariance
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import ABOVE_ZERO, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import label
from qkd.options import NotNegative, Positive

TARGETS = {"naive": targets.naive, "linear": targets.linear, "min_logit": targets.min_logit, "mean": targets.mean}


@published("Guo et al., CVPR 2020", teachers=1, only_with=imitation_options(("weight", (ABOVE_ZERO,))))
def kdcl(
    setup: Setup,
    *,
    target: Literal["naive", "linear", "min_logit", "general", "mean"] = "min_logit",
    temperature: Positive = 2.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    weight: NotNegative = 1.0,
    views: Literal["own", "same"] = "own",
) -> Plan:
    """All networks are students, and learn from the labels and from one soft target made of all their logits.

    ``sum_i CE_i + weight sum_i KL(target || p_i)``, the target constant.

    * ``naive``: per sample the member with the lowest cross-entropy. * ``linear``: the mixture with the lowest one.
    * ``min_logit``: the element-wise minimum after the true class was shifted to zero.
    * ``general``: a fixed mixture, weighted before each epoch by the covariance of the members' errors on the validation
      split (the paper holds a part of the training images back for that). * ``mean``: not in the paper; a baseline.

    ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    ``views``: every network sees an augmentation of its own of the same images, as in the paper, or all see the same.

    A member that is a view of another network (its moving average, for example) is part of the target and learns nothing itself.
    """
    pupils = setup.can_learn(setup.all_networks)
    taps = [Tap(part) for part in setup.all_networks]
    statistics = (ErrorCovariance(taps),) if target == "general" else ()
    soft = targets.weighted(taps, statistics[0].tap) if statistics else TARGETS[target](taps)
    terms = [label(part) for part in pupils]
    if weight:
        imitation = Imitation(logits, temperature, standardise, others)
        terms += [imitation.term(part, soft) * weight for part in pupils]
    numbers = {part: number for number, part in enumerate(setup.all_networks)} if views == "own" else {}
    return Plan((Phase("train", (Step(pupils, terms),)),), statistics=statistics, views=numbers)
