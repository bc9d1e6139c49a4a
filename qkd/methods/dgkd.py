"""DGKD: densely guided teacher assistants (Son et al., ICCV 2021); TAKD, the sparse chain before it (Mirzadeh et al. 2020)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import ABOVE_ZERO, OnlyWith, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.term_dropout import Bernoulli, DropExactly, TermDropout
from qkd.distill.terms import Term, label
from qkd.errors import PlanError
from qkd.options import Bounds, NotNegative, Positive, Share

ONLY_WITH: OnlyWith = {
    "drop": ("stochastic", ("drop",)),
    "keep": ("stochastic", ("bernoulli",)),
    "stochastic_for": ("stochastic", ("drop", "bernoulli")),
    **imitation_options(("soft", (ABOVE_ZERO,))),
}


@published("Son et al., ICCV 2021", teachers=1, only_with=ONLY_WITH)
def dgkd(
    setup: Setup,
    *,
    temperature: Positive = 5.0,
    soft: Share = 0.5,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    stochastic: Literal["bernoulli", "drop", "none"] = "bernoulli",
    keep: Share = 0.75,
    drop: Annotated[int, Bounds(at_least=0)] | None = None,
    stochastic_for: Literal["student", "everyone"] = "student",
    labels_per_guide: bool = True,
    teacher: Literal["frozen", "learn"] = "frozen",
    student_share: Positive = 1.0,
) -> Plan:
    """A chain of teachers, the largest first; each network, and at last the student, learns from all before it.

    One phase per network, in which only it learns: ``(n + 1)(1 - soft) CE + soft sum_guides KL(p_guide || p)`` (eq. 7), of
    n + 1 guides. The networks of the recipe decide whether size or bits decrease along the chain.

    * ``stochastic``: in each batch every guide counts with the probability ``keep``, of which 0.75 is the paper's best
      (section 5.5, figure 7). ``drop``: exactly ``drop`` of them, by default one, do not count, as in the released code; that
      is 0.75 for four guides, but 0.5 for two. A guide without others always counts. ``stochastic_for``: the student alone,
      as in the paper, or all that are guided.
    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``labels_per_guide``: off, the labels count once however many guides there are, as in the released code.
    * ``teacher``: ``learn`` adds a first phase that trains the head of the chain on the labels.
    * ``student_share``: the student's part of the epochs, where every assistant has 1.

    The released code uses temperature 5 and soft 1 (no labels), and divides KL by the number of classes; here it does not.
    """
    imitation = Imitation(logits, temperature, standardise, others)
    dropout = _dropout(stochastic, len(setup.teachers), drop, keep)
    chain = [*setup.teachers, setup.student]
    phases = [Phase(chain[0], (Step([chain[0]], [label(chain[0])]),))] if teacher == "learn" else []
    for number, part in enumerate(chain[1:], 1):
        guides, last = chain[:number], part == setup.student
        random = dropout if last or (stochastic_for == "everyone" and number > 1) else None
        terms = _guided(part, guides, imitation, soft, len(guides) if labels_per_guide else 1, random)
        phases.append(Phase(part, (Step([part], terms),), student_share if last else 1.0))
    return Plan(tuple(phases))


@published("Mirzadeh et al., AAAI 2020", teachers=1, only_with=imitation_options(("soft", (ABOVE_ZERO,))))
def takd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    soft: Share = 0.9,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    student_share: Positive = 1.0,
) -> Plan:
    """A chain of teachers, the largest first; each network, and at last the student, learns from the one before it.

    One phase per network: ``(1 - soft) CE + soft KL``. The paper searched temperature and soft for every pair. The head of
    the chain stays as it starts. ``student_share``: the student's part of the epochs, where every assistant has 1.
    ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    """
    imitation = Imitation(logits, temperature, standardise, others)
    links = pairwise([*setup.teachers, setup.student])
    phases = [Phase(part, (Step([part], _guided(part, [guide], imitation, soft, 1, None)),)) for guide, part in links]
    return Plan((*phases[:-1], replace(phases[-1], share=student_share)))


def _guided(
    part: str, guides: list[str], imitation: Imitation, soft: float, labels: int, dropout: TermDropout | None
) -> list[Term]:
    own = [label(part) * (labels * (1 - soft))] if soft < 1 else []
    taught = [imitation.term(part, one(Tap(guide))) * soft for guide in guides] if soft else []
    return [*own, *(replace(term, dropout=dropout) for term in taught)]


def _dropout(how: str, guides: int, drop: int | None, keep: float) -> TermDropout | None:
    if how == "bernoulli":
        return Bernoulli(keep) if guides > 1 else None
    count = (1 if guides > 1 else 0) if drop is None else drop
    if count > guides:
        raise PlanError(
            f"dgkd: cannot drop {count} guides of {guides}; write `drop: {guides}` or less, or add teachers",
            key="method.drops-too-many",
        )
    return DropExactly(count) if how == "drop" and count else None
