"""Term: a pure loss, the taps it reads, its weight. And the terms that methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from qkd.losses import Reduction, attention_distance, hint_distance, kl_divergence
from qkd.taps import Outputs, Tap
from qkd.targets import Target

if TYPE_CHECKING:
    from qkd.data import Batch

Schedule = Callable[[float], float]  # progress of the phase, 0..1, -> weight


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    ``loss`` gets the tensors of ``reads`` in that order, then the batch, and returns a scalar; what stands in
    ``detached`` sends no gradient back. ``weight`` is a number or a schedule over the progress of the phase.
    """

    name: str
    reads: tuple[Tap, ...]
    loss: Callable[..., Tensor]
    weight: float | Schedule = 1.0
    detached: frozenset[Tap] = frozenset()

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        tensors = (outputs[t].detach() if t in self.detached else outputs[t] for t in self.reads)
        return self.loss(*tensors, batch)

    def __mul__(self, weight: float | Schedule) -> Term:
        return replace(self, weight=weight)

    def weight_at(self, progress: float) -> float:
        return self.weight(progress) if callable(self.weight) else self.weight


def weighted_sum(losses: Mapping[str, Tensor], terms: tuple[Term, ...], progress: float) -> Tensor:
    """The loss that is minimised: every term times its weight at this progress."""
    total = sum(term.weight_at(progress) * losses[term.name] for term in terms)
    assert isinstance(total, Tensor)
    return total


def label(part: str) -> Term:
    """Cross-entropy of a part's logits with the labels."""
    tap = Tap(part)
    return Term(f"label/{part}", (tap,), lambda logits, batch: F.cross_entropy(logits.float(), batch.labels))


def imitate(part: str, target: Target, *, temperature: float, detach_target: bool = True) -> Term:
    """Kullback-Leibler divergence from a soft target to a part's logits."""

    def loss(logits: Tensor, *rest: object) -> Tensor:
        *members, batch = rest
        soft = target.build(members, batch.labels)  # type: ignore[attr-defined, arg-type]
        return kl_divergence(logits, soft.detach() if detach_target else soft, temperature=temperature)

    return Term(f"imitate/{part}<{target.name}", (Tap(part), *target.reads), loss)


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
