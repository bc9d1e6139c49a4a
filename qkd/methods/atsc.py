"""ATSC: adaptive teaching with a shared classifier (Jang et al. 2024); SimKD, its frozen special case (Chen et al. 2022)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from qkd.distill.heads import PROJECTED, Head, mean_of_logits, pool_to_smallest
from qkd.distill.method_info import ABOVE_ZERO, published
from qkd.distill.plan import Learner, Phase, Plan, Setup, Step
from qkd.distill.regularizers import L2SP
from qkd.distill.taps import LOGITS, Tap
from qkd.distill.targets import mean
from qkd.distill.terms import Term, hint, imitate, label, regularize
from qkd.options import Count, NotNegative, Positive

ENSEMBLE = "ensemble"


@published(
    "Jang et al., 2024, arXiv 2406.08528",
    teachers=1,
    match=True,
    only_with={"anchored": ("anchor", (ABOVE_ZERO,)), "temperature": ("soft", (ABOVE_ZERO,))},
)
def atsc(
    setup: Setup,
    *,
    feature: Positive = 1.0,
    anchor: NotNegative = 1.0,
    anchored: Literal["backbone", "all"] = "backbone",
    keep_classifier: bool = True,
    reduce: Count = 2,
    labels: NotNegative = 0.0,
    soft: NotNegative = 0.0,
    temperature: Positive = 4.0,
) -> Plan:
    """The student uses its teacher's classifier behind a projector; the teacher adapts its features and keeps its classifier.

    Per batch first student, projector and teacher: ``feature |P(F_S) - F_T|^2 + anchor sum |W_T - W_T at the start|^2`` (plus
    ``labels CE + soft KL`` of the product's logits), in which the teacher is trained as well; then its classifier: ``CE_T``.

    The product is backbone, projector and borrowed classifier; with several teachers one projector and classifier each,
    and the mean of the logits (our reading: the paper's own construction is not known to us).

    * ``anchor``: 1 for CIFAR, 10 for ImageNet. ``anchored: all`` holds the classifier's weights too, as the released code
      does. ``keep_classifier``: off, there is no second step.
    * ``reduce``: the projector's inner width is the teacher's divided by it; in a product of two bits a narrow projector is
      what loses most (EXPERIMENTS.md), so take 1 there. F is taken at the last matched layer, and what
      the teacher has behind that is its classifier.

    A projector of random weights and few bits learns slowly: ``pretrain: {joint_epochs: 10}`` trains all of this in float first.
    The anchor then holds to the weights at the end of that.

    Departures: the released code trains only the bias of the classifier (it takes the last parameter for the last layer),
    with the teacher's backbone in training mode, here in evaluation mode; and ``labels`` there means the student's own
    classifier, which is not deployed.
    """
    heads, terms = _project(setup, reduce, detach=False)
    regularizers = [L2SP(t, leave=[LOGITS] if anchored == "backbone" else []) for t in setup.teachers] if anchor else []
    terms = [term * feature for term in terms] + [regularize(each) * anchor for each in regularizers]
    product = heads[-1].name
    if labels:
        terms.append(label(product) * labels)
    if soft:
        target = mean([Tap(teacher) for teacher in setup.teachers])
        terms.append(imitate(product, target, temperature=temperature) * soft)
    learners = [setup.student, *setup.teachers, *(head.name for head in heads if head.via)]
    steps = [Step(learners, terms)]
    if keep_classifier:
        steps.append(Step([Learner(t, LOGITS) for t in setup.teachers], [label(t) for t in setup.teachers]))
    return Plan((Phase("train", tuple(steps)),), heads=heads, product=product, regularizers=tuple(regularizers))


@published("Chen et al., CVPR 2022", teachers=1, match=True, labels=False)
def simkd(setup: Setup, *, reduce: Count = 2) -> Plan:
    """The student imitates its frozen teacher's last features behind a projector, and uses the teacher's classifier.

    ``|P(F_S) - F_T|^2`` (eq. 2) and nothing else; no label is used. The product is backbone, projector and borrowed
    classifier, averaged over the teachers where there are several. ``reduce``: the projector's inner width is the teacher's
    divided by it (2 is the paper's best). ``pretrain: {joint_epochs: 10}`` trains backbone and projector in float first.
    """
    heads, terms = _project(setup, reduce, detach=True)
    learners = [setup.student, *(head.name for head in heads if head.via)]
    return Plan((Phase("train", (Step(learners, terms),)),), heads=heads, product=heads[-1].name)


def _project(setup: Setup, reduce: int, *, detach: bool) -> tuple[tuple[Head, ...], list[Term]]:
    """Per teacher a projector into its classifier, and the terms that train it; the product's head is the last."""
    stage = setup.stages[-1]
    heads: list[Head] = []
    terms: list[Term] = []
    for teacher in setup.teachers:
        own, theirs = Tap(setup.student, stage), Tap(teacher, stage)
        (read, source), pools = pool_to_smallest([own, theirs], setup.shapes)
        body = _projector(setup.channels(*own), setup.channels(*theirs), reduce)
        head = Head(f"as_{teacher}", [read], body, via=Tap(teacher), about=f"projector into the features of {teacher}")
        heads += [*(pool for pool in pools if pool.name not in {each.name for each in heads}), head]
        terms.append(hint(Tap(head.name, PROJECTED), source, detach_source=detach))
    if len(setup.teachers) > 1:
        heads.append(mean_of_logits(ENSEMBLE, [f"as_{teacher}" for teacher in setup.teachers], setup.classes))
    return tuple(heads), terms


def _projector(inputs: int, outputs: int, reduce: int) -> nn.Module:
    """Three convolutions (1x1, 3x3, 1x1), each with batch norm and ReLU."""
    inner = max(1, outputs // reduce)
    shapes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
    layers = [
        layer
        for a, b, size in shapes
        for layer in (nn.Conv2d(a, b, size, padding=size // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(*layers)
