"""DCM: dense cross-layer mutual distillation between all classifiers of two networks (Yao & Sun, ECCV 2020)."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

from torch import nn

from qkd.distill.heads import Head
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, imitate, label
from qkd.options import Count, NotNegative, Positive


@published("Yao & Sun, ECCV 2020", teachers=1, match=True)
def dcm(
    setup: Setup,
    *,
    temperature: Positive = 1.0,
    weight: NotNegative = 1.0,
    pairs: Literal["all", "same_depth", "logits"] = "all",
    depth: Count = 1,
) -> Plan:
    """Every classifier of a network learns from the labels and from every classifier of the others, and they from it.

    ``sum_u CE_u + weight sum_{u, v} (KL(p_v || p_u) + KL(p_u || p_v))``, targets constant; u and v are the final and the
    hidden classifiers of two different networks. Hidden ones sit on the layers of ``match:`` and stay out of the product.

    * ``pairs``: ablations; ``same_depth`` lets only classifiers of one stage meet, ``logits`` only the final ones (DML).
    * ``depth``: convolutions of stride two in a hidden classifier. Departure: the paper builds it from a copy of the
      network's own later layers.
    """
    heads = {
        Tap(part, stage): _branch(setup, Tap(part, stage), depth)
        for part in setup.all_networks
        for stage in setup.stages
    }
    names = {tap: head.name for tap, head in heads.items()} | {Tap(part): part for part in setup.all_networks}
    terms: list[Term] = [label(name) for name in names.values()]
    for u, v in combinations(names, 2) if weight else ():
        allowed = {"all": True, "same_depth": u.stage == v.stage, "logits": u.stage == v.stage == "logits"}[pairs]
        if u.part != v.part and allowed:
            terms += [
                imitate(names[pupil], one(Tap(names[other])), temperature=temperature) * weight
                for pupil, other in ((u, v), (v, u))
            ]
    learners = [*setup.all_networks, *(head.name for head in heads.values())]
    return Plan((Phase("train", (Step(learners, terms),)),), heads=tuple(heads.values()))


def _branch(setup: Setup, tap: Tap, depth: int) -> Head:
    """Convolutions that halve the map and double the channels, then a linear classifier."""
    channels, layers = setup.channels(*tap), []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()]
        channels *= 2
    name = f"{tap.part}_{tap.stage.replace('.', '_')}"
    return Head(name, [tap], nn.Sequential(*layers, setup.classifier(channels)))
