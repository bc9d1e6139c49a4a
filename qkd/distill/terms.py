"""Terms: the summands of a loss, and those that several methods use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from qkd.distill.losses import (
    Reduction,
    attention_distance,
    correlation_distance,
    hint_distance,
    kl_divergence,
)
from qkd.distill.regularizers import Regularizer
from qkd.distill.schedules import Weight, times, value_at
from qkd.distill.taps import Outputs, Tap
from qkd.distill.targets import Target
from qkd.distill.term_dropout import TermDropout
from qkd.tasks.batch import Batch


class TermName(NamedTuple):
    """What a term is called in metrics and reports, written ``kind/pupil<source``."""

    kind: str
    pupil: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.pupil}" + (f"<{self.source}" if self.source else "")

    @classmethod
    def parse(cls, text: str) -> TermName:
        """The name written as ``text``; a text without a slash is both kind and pupil."""
        kind, slash, rest = text.partition("/")
        pupil, _, source = (rest if slash else text).partition("<")
        return cls(kind, pupil, source)


@dataclass(frozen=True)
class Term:
    """One summand of a loss: by what ``kind`` of loss a ``pupil`` learns from a ``source``.

    ``reads`` are the taps of the pupil and then of its sources. ``loss`` gets their tensors in that order, then the batch,
    and returns a scalar; taps in ``detached`` send no gradient back. ``source`` is what the report calls the sources, empty
    for the labels. ``weight`` is a number or a schedule over the progress of the phase; ``term * 2`` multiplies it. Terms
    that share a ``dropout`` are a group of which some are dropped at random in each mini-batch.
    """

    kind: str
    pupil: str
    reads: tuple[Tap, ...]
    loss: Callable[..., Tensor]
    source: str = ""
    weight: Weight = 1.0
    detached: frozenset[Tap] = frozenset()
    dropout: TermDropout | None = None

    @property
    def name(self) -> str:
        """``kind/pupil<source``, unique within a step."""
        return str(TermName(self.kind, self.pupil, self.source))

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        tensors = (outputs[t].detach() if t in self.detached else outputs[t] for t in self.reads)
        return self.loss(*tensors, batch)

    def __mul__(self, weight: Weight) -> Term:
        return replace(self, weight=times(self.weight, weight))

    def weight_at(self, progress: float) -> float:
        return value_at(self.weight, progress)


def weighted_sum(losses: Mapping[str, Tensor], terms: tuple[Term, ...], progress: float) -> Tensor:
    """The loss that is minimised: every term times its weight at this progress; dropped terms count zero."""
    kept = draw_kept(terms)
    total = sum(term.weight_at(progress) * kept.get(term.name, 1.0) * losses[term.name] for term in terms)
    assert isinstance(total, Tensor)
    return total


def draw_kept(terms: Sequence[Term]) -> dict[str, float]:
    """Which of the terms with a dropout count this time: 1.0 or 0.0 by name. Draws once per group."""
    groups: dict[TermDropout, list[str]] = {}
    for term in terms:
        if term.dropout is not None:
            groups.setdefault(term.dropout, []).append(term.name)
    return {name: kept for d, names in groups.items() for name, kept in zip(names, d.draw(len(names)), strict=True)}


def label(part: str) -> Term:
    """Cross-entropy of a part's logits with the labels."""
    return Term("label", part, (Tap(part),), lambda logits, batch: F.cross_entropy(logits.float(), batch.labels))


Divergence = Callable[..., Tensor]  # (student's logits, teacher's logits, temperature=) -> scalar


def imitate(
    part: str,
    target: Target,
    *,
    temperature: float,
    detach_target: bool = True,
    divergence: Divergence = kl_divergence,
) -> Term:
    """Kullback-Leibler divergence, or another one, from a soft target to a part's logits."""

    def loss(logits: Tensor, soft: Tensor, batch: Batch) -> Tensor:
        return divergence(logits, soft, temperature=temperature)

    return soft_term("imitate", part, target, loss, detach_target=detach_target)


def soft_term(
    kind: str,
    part: str,
    target: Target,
    loss: Callable[[Tensor, Tensor, Batch], Tensor],
    *,
    detach_target: bool = True,
) -> Term:
    """Any ``loss(logits, soft, batch)`` of a part's logits and a soft target, which is a constant unless told otherwise."""

    def whole(logits: Tensor, *rest: object) -> Tensor:
        *members, batch = rest
        soft = target.build(members, batch)  # type: ignore[arg-type]
        return loss(logits, soft.detach() if detach_target else soft, batch)  # type: ignore[arg-type]

    return Term(kind, part, (Tap(part), *target.reads), whole, target.name)


def relate(
    kind: str, loss: Callable[[Tensor, Tensor], Tensor], tap: Tap, source: Tap, *, detach_source: bool = True
) -> Term:
    """Any loss of two feature tensors; the source is a constant unless ``detach_source`` is off."""
    detached = frozenset({source} if detach_source else ())
    return Term(kind, str(tap), (tap, source), lambda a, b, batch: loss(a, b), str(source), detached=detached)


def attend(tap: Tap, source: Tap, *, reduction: Reduction = "mean", detach_source: bool = True) -> Term:
    """Attention transfer: equal spatial attention maps (Zagoruyko & Komodakis 2017)."""

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return attention_distance(one, other, reduction=reduction)

    return relate("attention", loss, tap, source, detach_source=detach_source)


def hint(tap: Tap, source: Tap, *, detach_source: bool = True) -> Term:
    """Feature regression: equal features (Romero et al. 2015)."""
    return relate("hint", hint_distance, tap, source, detach_source=detach_source)


def correlate(tap: Tap, source: Tap, *, detach_source: bool = True) -> Term:
    """Feature regression behind a standardisation of every channel of both sides: equal patterns, whatever their scales."""
    return relate("correlation", correlation_distance, tap, source, detach_source=detach_source)


def regularize(regularizer: Regularizer) -> Term:
    """What a regularizer measures of the weights of a network, as a loss."""
    return Term(regularizer.kind, regularizer.part, (regularizer.tap,), lambda distance, batch: distance)
