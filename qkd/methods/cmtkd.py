"""CMT-KD: collaborative multi-teacher distillation for low-bit networks (Pham, Hoang & Do, WACV 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from qkd.distill import targets
from qkd.distill.exchange import Fuse
from qkd.distill.feature_terms import Feature, feature_terms
from qkd.distill.heads import Head, trainable
from qkd.distill.imitation import SOFTENED, Imitation, Logits
from qkd.distill.importance import Granularity
from qkd.distill.losses import Reduction
from qkd.distill.method_info import ABOVE_ZERO, AnyOf, OnlyWith, published
from qkd.distill.plan import IMPORTANCE, Phase, Plan, Setup, Step
from qkd.distill.taps import SHARED, Tap
from qkd.distill.team import Combined, Teach, Team, taught
from qkd.distill.terms import Term
from qkd.errors import PlanError
from qkd.options import Bounds, NotNegative, Positive

GAMMA: dict[Reduction, float] = {"mean": 100.0, "sum": 0.1, "norm": 100.0}  # of attention
TEACHERS_LEARN = (("teachers", ("learn",)), ("prepare", (ABOVE_ZERO,)))
IMITATE = AnyOf([("mutual", ("both", "student")), ("prepare_mutual", (ABOVE_ZERO,))])


ONLY_WITH: OnlyWith = {
    "temperature": (IMITATE, ("logits", SOFTENED)),
    "others": (IMITATE, ("logits", ("dkd",))),
    "logits": IMITATE,
    "standardise": IMITATE,
    "alpha_teachers": AnyOf([*TEACHERS_LEARN, ("combined", ("weighted", "head"))]),
    "beta": ("mutual", ("both", "student")),
    "gamma": ("feature", ("attention", "hint", "lattice")),
    "feature_gradient": ("feature", ("attention", "hint", "lattice")),
    "reduction": ("feature", ("attention",)),
    "importance_per": ("importance", ("learned",)),
    "importance_optimizer": ("importance", ("learned",)),
    "importance_rate": ("importance", ("learned",)),
    "teach": AnyOf(TEACHERS_LEARN),
    "detach_target": ("target", ("min_logit",)),
    "prepare_mutual": ("prepare", (ABOVE_ZERO,)),
}


@published("Pham, Hoang & Do, WACV 2023", teachers=1, match=True, only_with=ONLY_WITH)
def cmtkd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    alpha: NotNegative = 1.0,
    alpha_teachers: NotNegative | None = None,
    beta: NotNegative = 0.5,
    gamma: NotNegative | None = None,
    feature: Literal["attention", "hint", "lattice", "none"] = "attention",
    reduction: Reduction = "mean",
    feature_gradient: Literal["auto", "student", "both"] = "auto",
    importance: Literal["learned", "uniform"] = "learned",
    importance_per: Granularity = "layer",
    importance_optimizer: Literal["train", "adam"] = "train",
    importance_rate: Positive | None = None,
    exchange: bool = True,
    combined: Combined = "mean",
    teach: Teach = "combined",
    mutual: Literal["both", "student", "none"] = "both",
    target: Literal["min_logit", "combined"] = "min_logit",
    detach_target: bool = True,
    teachers: Literal["learn", "frozen"] = "learn",
    prepare: Annotated[float, Bounds(at_least=0, below=1)] = 0.0,
    prepare_mutual: NotNegative = 0.0,
) -> Plan:
    """Quantized teachers share an importance-weighted sum of their features; teachers and student learn at the same time.

    ``alpha (CE_S + CE_T) + beta (KL_S + KL_T) + gamma L_feature`` (eq. 10), T being the combined teacher.

    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``alpha_teachers``: the weight of CE_T, null: ``alpha`` as in eq. 10. A small ``alpha``, which leaves the student more
      to its teachers, would take the labels from the teachers too, and nothing else teaches them what the student does not know.
    * ``teach``: CE_T and KL_T of the combined teacher's logits, which gives each of n teachers the n-th part of what it
      would learn alone; or ``each``: CE_T is the sum of a cross-entropy of every teacher's own logits, and so is KL_T,
      towards the same target (as in KDCL). A combined teacher with parameters (weighted, head) keeps its own beside them.
    * ``exchange``: the fused features replace those of every teacher (eq. 1); off: they are only the student's target.
    * ``importance``: learned softmax weights per matched layer, as in eq. 1; ``importance_per`` channel, or sample (from
      the teachers' features, `attentive_weights`). ``importance_optimizer``: the recipe's, where ``importance_rate`` is a
      share of its rate (null: the paper's tenth), with which weights hardly move in thousands of steps; or Adam of its
      own, where it is the rate itself (null: 0.01), the same at every step.
    * ``feature``: attention maps (eq. 5), FitNet hints, or hints after the student's own quantizer (lattice), towards the
      fused features. ``gamma`` null: 1 for hints; for attention 100, in the customary ``reduction``, the mean over
      positions, and for the norm; 0.1 for the sum, which is 100 of the mean at maps of 32x32 (`attention_distance` has the
      other sizes; the paper's convention is not known).
    * ``feature_gradient``: whether it also trains the teachers. By default only the student, so that teachers are not
      pulled down to what a weaker network can copy; the importance then learns from CE_T and KL_T. With frozen teachers
      or without the exchange no other loss reaches the importance, so there this one does (and nothing else of theirs).
    * ``combined``: z_T as the mean of the teachers' logits (no parameters), their sum by a learned importance, or a
      classifier of its own on the last fused features (which then learns in place of the teachers).
    * ``mutual``: KL both ways through the min-logit target (eq. 7-9), to the student only, or not at all.
    * ``target``: the min-logit of z_T and the student (eq. 7), which uses the label and so gives it at least the larger of
      the two probabilities; or z_T unchanged, for the student alone, which keeps its probabilities of the other classes.
    * ``detach_target``: the target is a constant; a target with gradients can collapse onto its pupils.
    * ``prepare``: the share of the epochs in which the teachers alone learn from the labels, exchange on, before the student
      joins. ``prepare_mutual``: the weight of KL to the min-logit of all teachers meanwhile (KDCL).
    * ``teachers``: frozen: they do not learn (no CE_T, KL_T) together with the student. Prepared ones rest with their
      exchange, importance included, so that without augmentation their outputs are computed once.

    The layers fused are those of ``match:``. Tensors are fused behind their quantizers, as in eq. 1, and the sum is rounded
    again by each teacher's own quantizer, because a sum of numbers of several grids lies on none. A teacher whose shapes
    are not the first teacher's is adapted to them and back (the paper has teachers of one shape). A teacher that is a view of
    another network (the student's moving average, for example) takes part in all of this, but learns nothing itself.
    Departures: the paper keeps first and last layers in float, here they have 8 bits unless the scheme says otherwise.
    """
    able = setup.can_learn(setup.teachers)
    learn, rest = teachers == "learn" and bool(able), teachers == "frozen" and prepare > 0 and exchange
    _refuse_idle(setup, importance, combined, prepare_mutual, feature_gradient, rest=rest)
    fuse = Fuse(
        setup.teachers,
        setup.stages,
        learned=importance == "learned",
        per=importance_per,
        write_back=exchange,
        weigh_logits=combined == "weighted",
        detach_members=not exchange and feature_gradient == "auto",
        shapes=setup.shapes,
    )
    both = feature_gradient == "both" or (feature_gradient == "auto" and not rest and not (learn and exchange))
    heads, features = _features(setup, feature, reduction, gamma, detach_source=not both)
    imitation = Imitation(logits, temperature, standardise, others)
    team = Team.of(setup, fuse, combined, teach)
    pupils, alpha_t = () if rest else team.pupils(learn=learn), alpha if alpha_teachers is None else alpha_teachers
    moving = [] if rest else [*(able if learn else ()), *team.pieces]
    soft = targets.one(team.logits) if target == "combined" else targets.min_logit([team.logits, Tap(setup.student)])
    imitating = (
        () if mutual == "none" else (setup.student, *(pupils if (mutual, target) == ("both", "min_logit") else ()))
    )
    terms = taught(
        {setup.student: alpha, **dict.fromkeys(pupils, alpha_t)},
        dict.fromkeys(imitating, beta),
        soft,
        imitation,
        detach_target=detach_target,
    )
    phases = [Phase("train", (Step([setup.student, *moving, *trainable(heads)], [*terms, *features]),), 1 - prepare)]
    if prepare:
        phases.insert(0, team.preparation(prepare, alpha=alpha_t, mutual=prepare_mutual, imitation=imitation))
    plan = Plan(tuple(phases), exchange=fuse, heads=(*heads, *team.heads))
    if importance_optimizer == "adam":
        return replace(plan, own_rates={IMPORTANCE: importance_rate or 0.01})
    return replace(plan, rates={IMPORTANCE: importance_rate or 0.1})


def _refuse_idle(
    setup: Setup, importance: str, combined: Combined, prepare_mutual: float, feature_gradient: str, *, rest: bool
) -> None:
    """Raises PlanError for options that would do nothing in this setting."""
    idle = {
        "combined: weighted does nothing with importance: uniform": combined == "weighted" and importance == "uniform",
        "prepare_mutual needs two teachers": prepare_mutual > 0 and len(setup.teachers) < 2,
        "feature_gradient: both does nothing where prepared teachers rest": rest and feature_gradient == "both",
    }
    for message, found in idle.items():
        if found:
            raise PlanError(f"cmtkd: {message}", key="method.option-without-effect")


def _features(
    setup: Setup, feature: Feature, reduction: Reduction, gamma: float | None, *, detach_source: bool
) -> tuple[tuple[Head, ...], list[Term]]:
    """The feature terms, one per matched layer, and the heads they need."""
    pairs = [(Tap(setup.student, stage), Tap(SHARED, stage)) for stage in setup.stages]
    shapes = {**setup.shapes, **{Tap(SHARED, s): setup.shapes[Tap(setup.teachers[0], s)] for s in setup.stages}}
    weight = GAMMA[reduction] if feature == "attention" else 1.0
    return feature_terms(
        feature,
        pairs,
        shapes,
        weight if gamma is None else gamma,
        reduction=reduction,
        detach_source=detach_source,
    )
