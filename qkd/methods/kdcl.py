"""KDCL: online distillation from a target built of everybody's logits (Guo et al., CVPR 2020)."""

from __future__ import annotations

from typing import Literal

from qkd.distill import targets
from qkd.distill.epoch_statistics import ErrorCovariance
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import imitate, label
from qkd.options import NotNegative, Positive

TARGETS = {"naive": targets.naive, "linear": targets.linear, "min_logit": targets.min_logit, "mean": targets.mean}


@published("Guo et al., CVPR 2020", teachers=1)
def kdcl(
    setup: Setup,
    *,
    target: Literal["naive", "linear", "min_logit", "general", "mean"] = "min_logit",
    temperature: Positive = 2.0,
    weight: NotNegative = 1.0,
    views: Literal["own", "same"] = "own",
) -> Plan:
    """All networks are students, and learn from the labels and from one soft target made of all their logits.

    ``sum_i CE_i + weight sum_i KL(target || p_i)``, the target constant.

    * ``naive``: sample by sample, whoever is least wrong. * ``linear``: the mixture that is least wrong about the batch.
    * ``min_logit``: the element-wise minimum after the true class was shifted to zero.
    * ``general``: a fixed mixture, weighed before each epoch by how the members' errors on the validation split go
      together (the paper holds a part of the training images back for that). * ``mean``: not in the paper; to be beaten.

    ``views``: every network sees an augmentation of its own of the same images, as in the paper, or all see the same.
    """
    taps = [Tap(part) for part in setup.all_networks]
    surveys = (ErrorCovariance(taps),) if target == "general" else ()
    soft = targets.weighted(taps, lambda: surveys[0].weights) if surveys else TARGETS[target](taps)
    terms = [label(part) for part in setup.all_networks]
    if weight:
        terms += [imitate(part, soft, temperature=temperature) * weight for part in setup.all_networks]
    sights = {part: number for number, part in enumerate(setup.all_networks)} if views == "own" else {}
    return Plan((Phase("train", (Step(setup.all_networks, terms),)),), surveys=surveys, views=sights)
