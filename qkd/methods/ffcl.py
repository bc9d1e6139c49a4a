"""FFCL: feature-fusion-based collaborative learning (Li et al., IJDSN 2021); FFL, its published relative (Kim et al. 2019)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from qkd.distill.heads import Head, adapt_shapes, pool_to_smallest, trainable
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import ABOVE_ZERO, OnlyWith, published
from qkd.distill.plan import Learner, Phase, Plan, Setup, Step
from qkd.distill.schedules import Ramp
from qkd.distill.taps import Tap
from qkd.distill.targets import mean, one, virtual
from qkd.distill.terms import Term, attend, correlate, hint, imitate, label
from qkd.options import NotNegative, Positive, Share

MAP, FUSED = "fusion", "fused"  # the fused feature map, and the classifier behind it
FEATURES = {"correlation": correlate, "hint": hint, "attention": attend}
DECAYS = {Learner(MAP): 0.1, Learner(FUSED): 0.1}  # FFL's code: 1e-5 for the fusion module, 1e-4 for the networks


ONLY_WITH: OnlyWith = {
    **imitation_options(),
    "feature_loss": ("feature", (ABOVE_ZERO,)),
    "confidence": ("positive", (ABOVE_ZERO,)),
    "positive_temperature": ("positive", (ABOVE_ZERO,)),
}


@published(
    "Li et al., Int. J. of Distributed Sensor Networks 17(11), 2021", teachers=1, match=True, only_with=ONLY_WITH
)
def ffcl(
    setup: Setup,
    *,
    temperature: Positive = 3.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    response: NotNegative = 1.0,
    fused: NotNegative = 1.0,
    feature: NotNegative = 1.0,
    feature_loss: Literal["correlation", "hint", "attention"] = "correlation",
    positive: NotNegative = 0.1,
    confidence: Share = 0.99,
    positive_temperature: Positive = 20.0,
    ramp: Share = 0.27,
    product: Literal["student", "fused"] = "student",
) -> Plan:
    """Networks learn together from each other's logits and from their fused feature maps (our reading of FFCL).

    ``L_i = CE + w(t) [response KL(p_j || p_i) + fused KL(p_F || p_i) + feature D(F_i, F)] + positive KL(q || p_i)`` for every
    network, ``L_F = CE + w(t) KL(softmax(mean z) || p_F)`` for the classifier on the fused map F; targets are constant.

    Certain from the abstract: no trained teacher, feature- and response-based exchange at different layers, concatenated
    features, a regularisation that supplies positive knowledge. The rest is our reading: fusion and ramp are those of FFL,
    and the positive knowledge is a virtual teacher q that gives the true class ``confidence`` (Yuan et al. 2020).

    * ``feature_loss`` D: ``correlation``, squared differences after every channel of both maps was standardised. ``hint``,
      without that: it draws the student's scale to that of F, which comes out of a batch norm and ReLU of its own.
      ``attention``: of attention maps.
    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`; of the virtual teacher by KL.
    * ``ramp``: the share of training over which w(t) grows to one (FFL: 80 of 300 epochs).
    * ``product``: the student alone, or both networks with the fused classifier.
    """
    heads = [*_fusion(setup)]
    shapes = {**setup.shapes, Tap(MAP): _fused_shape(setup)}
    imitation = Imitation(logits, temperature, standardise, others)
    terms: list[Term] = _fused_terms(setup, imitation, ramp)
    for part in setup.all_networks:
        peers = [peer for peer in setup.all_networks if peer != part]
        if response:
            terms += [term * Ramp(1.0, ramp) for term in imitation.mutual(part, peers, weight=response)]
        terms += [imitation.term(part, one(Tap(FUSED))) * Ramp(fused, ramp)] if fused else []
        if feature:
            own, source, more = adapt_shapes(
                Tap(part, setup.stages[-1]), Tap(MAP), shapes, channels=feature_loss != "attention"
            )
            heads += more
            terms.append(FEATURES[feature_loss](own, source) * Ramp(feature, ramp))
        if positive:
            terms.append(imitate(part, virtual(part, confidence), temperature=positive_temperature) * positive)
    learners = [*setup.all_networks, *trainable(heads)]
    phase = Phase("train", (Step(learners, terms),))
    made = FUSED if product == "fused" else setup.student
    return Plan((phase,), heads=tuple(heads), product=made, decays=DECAYS)


@published("Kim et al., 2019, arXiv 1904.09058", teachers=1, match=True)
def ffl(
    setup: Setup,
    *,
    temperature: Positive = 3.0,
    ramp: Share = 0.27,
    product: Literal["student", "fused"] = "student",
) -> Plan:
    """Networks learn together; a classifier on their fused features learns from their mean, and they learn from it.

    ``sum_i CE_i + CE_F + w(t) [sum_i KL(p_F || p_i) + KL(softmax(mean z) || p_F)]``, targets constant,
    ``w(t) = exp(-5 (1 - t)^2)`` over the first ``ramp`` of training (80 of 300 epochs). ``product``: the student alone, or
    all networks with the classifier.

    Departure: networks share no layers; the paper lets those of one architecture share the first.
    """
    heads = _fusion(setup)
    terms = _fused_terms(setup, Imitation(temperature=temperature), ramp)
    terms += [imitate(p, one(Tap(FUSED)), temperature=temperature) * Ramp(1.0, ramp) for p in setup.all_networks]
    phase = Phase("train", (Step([*setup.all_networks, *trainable(heads)], terms),))
    return Plan((phase,), heads=heads, product=FUSED if product == "fused" else setup.student, decays=DECAYS)


def _fusion(setup: Setup) -> tuple[Head, ...]:
    """The last feature maps joined, a depthwise 3x3 and a 1x1 convolution, and the classifier. Source: FFL's code."""
    maps, pools = pool_to_smallest([Tap(part, setup.stages[-1]) for part in setup.all_networks], setup.shapes)
    joined, channels = (
        sum(setup.channels(part, setup.stages[-1]) for part in setup.all_networks),
        _fused_shape(setup)[0],
    )
    body = nn.Sequential(
        nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False),
        nn.BatchNorm2d(joined),
        nn.ReLU(),
        nn.Conv2d(joined, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
    return (
        *pools,
        Head(MAP, maps, body, about="fused feature map"),
        Head(FUSED, [Tap(MAP)], setup.classifier(channels)),
    )


def _fused_shape(setup: Setup) -> tuple[int, int, int]:
    """The student's channels, at the size of the smallest map."""
    shapes = [setup.shapes[Tap(part, setup.stages[-1])] for part in setup.all_networks]
    return shapes[0][0], min(shape[1] for shape in shapes), min(shape[2] for shape in shapes)


def _fused_terms(setup: Setup, imitation: Imitation, ramp: float) -> list[Term]:
    """The label terms of all networks and of the fused classifier, which also learns from the mean of all."""
    together = mean([Tap(part) for part in setup.all_networks])
    own = [label(part) for part in (*setup.all_networks, FUSED)]
    return [*own, imitation.term(FUSED, together) * Ramp(1.0, ramp)]
