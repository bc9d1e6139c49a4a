"""CMT-KD: collaborative multi-teacher distillation for low-bit networks (Pham, Hoang & Do, WACV 2023)."""

from __future__ import annotations

from typing import Literal

from qkd.distill import targets
from qkd.distill.exchange import Fuse
from qkd.distill.heads import Head, adapt_shapes, trainable
from qkd.distill.losses import Reduction
from qkd.distill.method_info import OnlyWith, published
from qkd.distill.plan import ADAPTERS, IMPORTANCE, Learner, Phase, Plan, Setup, Step
from qkd.distill.taps import SHARED, Tap
from qkd.distill.terms import Term, attend, hint, imitate, label
from qkd.options import NotNegative, Positive

COMBINED = "combined"  # the head of `combined: head`


ONLY_WITH: OnlyWith = {
    "temperature": ("mutual", ("both", "student")),
    "beta": ("mutual", ("both", "student")),
    "gamma": ("feature", ("attention", "hint")),
    "feature_gradient": ("feature", ("attention", "hint")),
    "reduction": ("feature", ("attention",)),
    "importance_rate": ("importance", ("learned",)),
    "detach_target": ("target", ("min_logit",)),
}


@published("Pham, Hoang & Do, WACV 2023", teachers=1, match=True, only_with=ONLY_WITH)
def cmtkd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 0.5,
    gamma: NotNegative | None = None,
    feature: Literal["attention", "hint", "none"] = "attention",
    reduction: Reduction = "mean",
    feature_gradient: Literal["auto", "student", "both"] = "auto",
    importance: Literal["learned", "uniform"] = "learned",
    importance_rate: Positive = 0.1,
    exchange: bool = True,
    combined: Literal["mean", "weighted", "head"] = "mean",
    mutual: Literal["both", "student", "none"] = "both",
    target: Literal["min_logit", "combined"] = "min_logit",
    detach_target: bool = True,
    teachers: Literal["learn", "frozen"] = "learn",
) -> Plan:
    """Quantized teachers share an importance-weighted sum of their features; teachers and student learn at the same time.

    ``alpha (CE_S + CE_T) + beta (KL_S + KL_T) + gamma L_feature`` (eq. 10), T being the combined teacher.

    * ``exchange``: the fused features replace those of every teacher (eq. 1); off: they are only the student's target.
    * ``importance``: softmax weights per matched layer, learned at ``importance_rate`` times the rate (the paper: a tenth).
    * ``feature``: attention maps (eq. 5, gamma 100) or FitNet hints (gamma 1) towards the fused features. ``reduction``:
      mean over positions, because the 100 comes with that convention.
    * ``feature_gradient``: whether it also trains the teachers. By default only the student, so that teachers are not
      pulled down to what a weaker network can copy; the importance then learns from CE_T and KL_T. With frozen teachers
      or without the exchange no other loss reaches the importance, so there this one does (and nothing else of theirs).
    * ``combined``: z_T as the mean of the teachers' logits (no parameters), their sum by a learned importance, or a
      classifier of its own on the last fused features (which then learns in place of the teachers).
    * ``mutual``: KL both ways through the min-logit target (eq. 7-9), to the student only, or not at all.
    * ``target``: the min-logit of z_T and the student (eq. 7), which uses the label and so gives it at least the larger of
      the two probabilities; or z_T unchanged, for the student alone, which keeps its probabilities of the other classes.
    * ``detach_target``: the target is a constant; a target with gradients can collapse onto its pupils.
    * ``teachers``: frozen: they do not learn (no CE_T, KL_T).

    The layers fused are those of ``match:``. Tensors are fused behind their quantizers, as in eq. 1, and the sum is rounded
    again by each teacher's own quantizer, because a sum of numbers of several grids lies on none. A teacher whose shapes
    are not the first teacher's is adapted to them and back (the paper has teachers of one shape). A teacher that is a view of
    another network (the student's moving average, for example) takes part in all of this, but learns nothing itself.
    Departures: the paper keeps first and last layers in float, here they have 8 bits unless the scheme says otherwise.
    """
    own = setup.can_learn(setup.teachers)
    learn = teachers == "learn" and bool(own)
    fuse = Fuse(
        setup.teachers,
        setup.stages,
        learned=importance == "learned",
        write_back=exchange,
        weigh_logits=combined == "weighted",
        detach_members=not exchange and feature_gradient == "auto",
        shapes=setup.shapes,
    )
    team = Tap(COMBINED if combined == "head" else SHARED)
    soft = targets.one(team) if target == "combined" else targets.min_logit([team, Tap(setup.student)])
    taught = {setup.student} if mutual != "none" else set()
    taught |= {team.part} if mutual == "both" and target == "min_logit" else set()
    terms = []
    for part in (setup.student, team.part) if learn or combined == "head" else (setup.student,):
        kl = imitate(part, soft, temperature=temperature, detach_target=detach_target)
        terms += [label(part) * alpha, *([kl * beta] if part in taught else [])]
    both = feature_gradient == "both" or (feature_gradient == "auto" and not (learn and exchange))
    heads, features = _features(setup, feature, reduction, gamma, detach_source=not both)
    heads += (_classifier(setup),) if combined == "head" else ()
    learners: list[str | Learner] = [
        setup.student,
        *(own if learn else ()),
        *_learned(fuse),
        *trainable(heads),
    ]
    phase = Phase("train", (Step(learners, [*terms, *features]),))
    return Plan((phase,), exchange=fuse, heads=heads, rates={IMPORTANCE: importance_rate})


def _classifier(setup: Setup) -> Head:
    """A classifier of its own on the last fused features."""
    shared = Tap(SHARED, setup.stages[-1])
    return Head(COMBINED, [shared], setup.classifier(setup.channels(setup.teachers[0], shared.stage)))


def _learned(fuse: Fuse) -> list[Learner]:
    """The pieces of the exchange that learn."""
    return [*((IMPORTANCE,) if fuse.weighted_stages else ()), *((ADAPTERS,) if len(fuse.adapters) else ())]


def _features(
    setup: Setup, feature: str, reduction: Reduction, gamma: float | None, *, detach_source: bool
) -> tuple[tuple[Head, ...], list[Term]]:
    """The feature terms, one per matched layer, and the adapters they need where shapes differ."""
    heads: list[Head] = []
    terms: list[Term] = []
    if feature == "none":
        return (), terms
    default = 1.0 if feature == "hint" else 100.0
    for stage in setup.stages:
        source = Tap(SHARED, stage)
        shapes = {**setup.shapes, source: setup.shapes[Tap(setup.teachers[0], stage)]}
        own, theirs, more = adapt_shapes(Tap(setup.student, stage), source, shapes, channels=feature == "hint")
        heads += more
        if feature == "hint":
            term = hint(own, theirs, detach_source=detach_source)
        else:
            term = attend(own, theirs, reduction=reduction, detach_source=detach_source)
        terms.append(term * (default if gamma is None else gamma))
    return tuple(heads), terms
