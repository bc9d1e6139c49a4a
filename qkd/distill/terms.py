"""Term: a pure loss, the taps it reads, its weight. And the terms that methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from qkd.distill.losses import Reduction, attention_distance, decoupled_divergence, hint_distance, kl_divergence
from qkd.distill.regularizers import ANCHOR, L2SP
from qkd.distill.taps import Outputs, Tap
from qkd.distill.targets import Target, one
from qkd.distill.term_dropout import TermDropout

if TYPE_CHECKING:
    from qkd.data import Batch

Schedule = Callable[[float], float]  # progress of the phase, 0..1, -> weight


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    ``loss`` gets the tensors of ``reads`` in that order, then the batch, and returns a scalar; what stands in
    ``detached`` sends no gradient back. ``weight`` is a number or a schedule over the progress of the phase. Terms that
    share a ``chance`` are a group of which some are dropped at random in each mini-batch.
    """

    name: str
    reads: tuple[Tap, ...]
    loss: Callable[..., Tensor]
    weight: float | Schedule = 1.0
    detached: frozenset[Tap] = frozenset()
    chance: TermDropout | None = None

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        tensors = (outputs[t].detach() if t in self.detached else outputs[t] for t in self.reads)
        return self.loss(*tensors, batch)

    def __mul__(self, weight: float | Schedule) -> Term:
        return replace(self, weight=weight)

    def weight_at(self, progress: float) -> float:
        return self.weight(progress) if callable(self.weight) else self.weight


def weighted_sum(losses: Mapping[str, Tensor], terms: tuple[Term, ...], progress: float) -> Tensor:
    """The loss that is minimised: every term times its weight at this progress, those dropped by chance times zero."""
    kept = draw_kept(terms)
    total = sum(term.weight_at(progress) * kept.get(term.name, 1.0) * losses[term.name] for term in terms)
    assert isinstance(total, Tensor)
    return total


def draw_kept(terms: Sequence[Term]) -> dict[str, float]:
    """Which of the terms that have a chance count this time: 1.0 or 0.0 by name. Draws once per group."""
    groups: dict[TermDropout, list[str]] = {}
    for term in terms:
        if term.chance is not None:
            groups.setdefault(term.chance, []).append(term.name)
    return {name: kept for c, names in groups.items() for name, kept in zip(names, c.draw(len(names)), strict=True)}


def label(part: str) -> Term:
    """Cross-entropy of a part's logits with the labels."""
    tap = Tap(part)
    return Term(f"label/{part}", (tap,), lambda logits, batch: F.cross_entropy(logits.float(), batch.labels))


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

    def loss(logits: Tensor, *rest: object) -> Tensor:
        *members, batch = rest
        soft = target.build(members, batch)  # type: ignore[arg-type]
        return divergence(logits, soft.detach() if detach_target else soft, temperature=temperature)

    return Term(f"imitate/{part}<{target.name}", (Tap(part), *target.reads), loss)


def decouple(part: str, target: Target, *, temperature: float, others: float = 8.0) -> Term:
    """DKD: imitate a soft target, the classes beside the true one ``others`` times as much as the true one."""

    def loss(logits: Tensor, *rest: object) -> Tensor:
        *members, batch = rest
        labels: Tensor = batch.labels  # type: ignore[attr-defined]
        soft = target.build(members, batch).detach()  # type: ignore[arg-type]
        return decoupled_divergence(logits, soft, labels, temperature=temperature, others=others)

    return Term(f"decouple/{part}<{target.name}", (Tap(part), *target.reads), loss)


def mutual(part: str, others: Sequence[str], *, temperature: float, weight: float = 1.0) -> list[Term]:
    """Imitate each of the others, with equal shares of the weight."""
    return [imitate(part, one(Tap(o)), temperature=temperature) * (weight / len(others)) for o in others]


def relate(name: str, loss: Callable[[Tensor, Tensor], Tensor], tap: Tap, source: Tap) -> Term:
    """Any loss of two feature tensors, named; the source is a constant."""
    return Term(f"{name}/{tap}<{source}", (tap, source), lambda a, b, batch: loss(a, b), detached=frozenset({source}))


def attend(tap: Tap, source: Tap, *, reduction: Reduction = "mean", detach_source: bool = True) -> Term:
    """Attention transfer: look where the source looks."""
    return Term(
        f"attention/{tap}<{source}",
        (tap, source),
        lambda a, b, batch: attention_distance(a, b, reduction=reduction),
        detached=frozenset({source} if detach_source else ()),
    )


def hint(tap: Tap, source: Tap, *, detach_source: bool = True) -> Term:
    """Feature regression: equal the source's features."""
    return Term(
        f"hint/{tap}<{source}",
        (tap, source),
        lambda a, b, batch: hint_distance(a, b),
        detached=frozenset({source} if detach_source else ()),
    )


def l2_sp(anchor: L2SP) -> Term:
    """Keep the weights of a network near those it had when the phase began."""
    return Term(f"{ANCHOR}/{anchor.part}", (anchor.tap,), lambda distance, batch: distance)
