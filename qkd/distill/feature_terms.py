"""The classic losses between hidden layers of two networks, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from qkd.distill.adapters import shape_text
from qkd.distill.heads import Head, adapt_shapes, on_grid
from qkd.distill.losses import Reduction, attention_distance, hint_distance
from qkd.distill.relational_losses import contrastive_distance, relational_distance, similarity_distance
from qkd.distill.taps import Tap
from qkd.distill.targets import Weigh
from qkd.distill.terms import Term, relate
from qkd.errors import PlanError

Feature = Literal["none", "attention", "hint", "lattice", "similarity", "relational", "contrastive"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": attention_distance,
    "hint": hint_distance,
    "lattice": hint_distance,
    "similarity": similarity_distance,
    "relational": relational_distance,
    "contrastive": contrastive_distance,
}
WEIGHTS = {
    "none": 0.0,
    "attention": 1000.0,
    "hint": 100.0,
    "lattice": 1.0,
    "similarity": 3000.0,
    "relational": 1.0,
    "contrastive": 0.8,
}
ATTENTION_WEIGHTS: dict[Reduction, float] = {"mean": 1000.0, "sum": 1.0, "norm": 1.0}
"""The customary weight of attention by its reduction: 1000 of the mean is 0.98 of the sum at maps of 32x32."""
SAME_CHANNELS = ("hint", "contrastive")  # the others compare maps of any channels ...
ANY_SHAPE = ("similarity", "relational")  # ... and these of any shape


def feature_terms(
    kind: Feature,
    pairs: Sequence[tuple[Tap, Tap]],
    shapes: Mapping[Tap, Sequence[int]],
    weight: float | None = None,
    *,
    weigh: Weigh | None = None,
    reduction: Reduction = "mean",
    detach_source: bool = True,
) -> tuple[tuple[Head, ...], list[Term]]:
    """The terms by which each first tap learns from the second, and the heads needed for it.

    Heads adapt shapes that differ, and round the sources of ``lattice`` by the quantizer that ends the first tap's stage.
    Without a ``weight`` it is that of the RepDistiller lineage (contrastive: that of CRD; lattice: 1, as of SQuaT). The weight
    holds for every pair. ``reduction`` is that of attention. With ``weigh`` hints, also those of ``lattice``, count, sample by
    sample, n times as much as the source's network weighs among the n of all pairs, by their logits. Raises PlanError for
    shapes that cannot be adapted.
    """
    usual = ATTENTION_WEIGHTS[reduction] if kind == "attention" else WEIGHTS[kind]
    owners = list(dict.fromkeys(source.part for _, source in pairs))
    heads: dict[str, Head] = {}
    terms: list[Term] = []
    for tap, source in pairs if kind != "none" else ():
        own, theirs, needed = _comparable(kind, tap, source, shapes)
        heads |= {head.name: head for head in needed}
        loss = partial(attention_distance, reduction=reduction) if kind == "attention" else LOSSES[kind]
        name = "hint" if kind == "lattice" else kind
        term = relate(name, loss, own, theirs, detach_source=detach_source)
        if weigh is not None and name == "hint":
            term = _weighed(term, owners, owners.index(source.part), weigh)
        terms.append(term * (usual if weight is None else weight))
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


def _comparable(
    kind: Feature, tap: Tap, source: Tap, shapes: Mapping[Tap, Sequence[int]]
) -> tuple[Tap, Tap, tuple[Head, ...]]:
    """Where to read the two, so that they can be compared, and the heads that makes necessary."""
    if kind in ANY_SHAPE:
        return tap, source, ()
    if kind != "lattice":
        return adapt_shapes(tap, source, shapes, channels=kind in SAME_CHANNELS)
    if tuple(shapes[tap]) != tuple(shapes[source]):
        raise PlanError(
            f"feature: lattice: {tap} is {shape_text(shapes[tap])} and {source} {shape_text(shapes[source])}: only features of "
            f"one shape can be rounded by one quantizer; take feature: hint, or networks of one width",
            key="match.lattice-of-other-shape",
        )
    rounded = on_grid(source, tap)
    return tap, Tap(rounded.name), (rounded,)
