"""The classic losses between hidden layers of two networks, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from qkd.distill.heads import Head, adapt_shapes
from qkd.distill.losses import attention_distance, hint_distance
from qkd.distill.relational_losses import contrastive_distance, relational_distance, similarity_distance
from qkd.distill.taps import Tap
from qkd.distill.targets import Weigh
from qkd.distill.terms import Term, relate

Feature = Literal["none", "attention", "hint", "similarity", "relational", "contrastive"]

LOSSES = {
    "attention": attention_distance,
    "hint": hint_distance,
    "similarity": similarity_distance,
    "relational": relational_distance,
    "contrastive": contrastive_distance,
}
WEIGHTS = {"none": 0.0, "attention": 1000.0, "hint": 100.0, "similarity": 3000.0, "relational": 1.0, "contrastive": 0.8}
SAME_CHANNELS = ("hint", "contrastive")  # the others compare maps of any channels ...
ANY_SHAPE = ("similarity", "relational")  # ... and these of any shape


def feature_terms(
    kind: Feature,
    pairs: Sequence[tuple[Tap, Tap]],
    shapes: Mapping[Tap, Sequence[int]],
    weight: float | None = None,
    *,
    weigh: Weigh | None = None,
) -> tuple[tuple[Head, ...], list[Term]]:
    """The terms by which each first tap learns from the second, and the adapters needed where shapes differ.

    Without a ``weight`` it is that of the RepDistiller lineage (contrastive: that of CRD). The weight holds for every
    pair; sources are constants. With ``weigh`` hints count, sample by sample, n times as much as the source's network weighs
    among the n of all pairs, by their logits. Raises PlanError for shapes that cannot be adapted.
    """
    owners = list(dict.fromkeys(source.part for _, source in pairs))
    heads: dict[str, Head] = {}
    terms: list[Term] = []
    for tap, source in pairs if kind != "none" else ():
        owner = owners.index(source.part)
        if kind not in ANY_SHAPE:
            tap, source, needed = adapt_shapes(tap, source, shapes, channels=kind in SAME_CHANNELS)
            heads |= {head.name: head for head in needed}
        term = relate(kind, LOSSES[kind], tap, source)
        if weigh is not None and kind == "hint":
            term = _weighed(term, owners, owner, weigh)
        terms.append(term * (WEIGHTS[kind] if weight is None else weight))
    return tuple(heads.values()), terms


def _weighed(hint: Term, owners: Sequence[str], owner: int, weigh: Weigh) -> Term:
    """A hint with the squared error of every sample weighed by its source's owner; equal weights change nothing.

    Source: Zhang et al. 2022 (CA-MKD), eq. 7. Departure: its weights for features come from the teachers' classifiers behind
    the student's adapted features, here they are those of the logits.
    """

    def loss(own: Tensor, source: Tensor, *rest: object) -> Tensor:
        *logits, batch = rest
        share = weigh(logits, batch.labels)[owner] * len(owners)  # type: ignore[arg-type, attr-defined]
        return (share * (own.float() - source.float()).square().flatten(1).mean(1)).mean()

    return replace(hint, reads=(*hint.reads, *map(Tap, owners)), loss=loss)
