"""Imitation: how a part learns from a soft target, the same options for every method that has such a term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from qkd.distill.losses import (
    cosine_divergence,
    decoupled_divergence,
    kl_divergence,
    squared_divergence,
    standardised,
)
from qkd.distill.method_info import OnlyWith, Requirement
from qkd.distill.taps import Tap
from qkd.distill.targets import Target, one
from qkd.distill.terms import Term, soft_term
from qkd.tasks.batch import Batch

Logits = Literal["kl", "dkd", "cosine", "mse"]
SOFTENED = ("kl", "dkd")  # those that have a temperature
ALL = (*SOFTENED, "cosine", "mse")


@dataclass(frozen=True)
class Imitation:
    """How the logits of a pupil are compared with a soft target. The fields are the options of the methods.

    * ``logits``: ``kl`` (Hinton et al. 2015), with ``temperature``. ``dkd`` (Zhao et al. 2022), with ``temperature`` and
      ``others``, the weight of the classes that are not the true one, and so with labels; terms of this kind are named
      ``decouple``. ``cosine``: ``1 - cos`` of the probabilities (Boo et al. 2021, SPEQ), whose pull shrinks with the target's
      certainty. ``mse``: squared error of the logits, summed over the classes.
    * ``standardise``: both sides' logits have mean 0 and deviation 1 over the classes first (Sun et al. 2024), so that a
      pupil need not reach the range of its target's logits. Their temperature is 2 then, and labels count too, since the
      range is lost.
    """

    logits: Logits = "kl"
    temperature: float = 4.0
    standardise: bool = False
    others: float = 8.0

    @property
    def softness(self) -> float:
        """The temperature of the probabilities that are compared."""
        return self.temperature if self.logits in SOFTENED else 1.0

    def loss(self, pupil: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The distance of logits (batch, classes) from those of a target -> ()."""
        if self.standardise:
            pupil, target = standardised(pupil), standardised(target)
        if self.logits == "dkd":
            return decoupled_divergence(pupil, target, batch.labels, temperature=self.temperature, others=self.others)
        if self.logits == "kl":
            return kl_divergence(pupil, target, temperature=self.temperature)
        return (cosine_divergence if self.logits == "cosine" else squared_divergence)(pupil, target)

    def term(self, part: str, target: Target, *, detach_target: bool = True) -> Term:
        """The term by which a part imitates a target."""
        kind = "decouple" if self.logits == "dkd" else "imitate"
        return soft_term(kind, part, target, self.loss, detach_target=detach_target)

    def mutual(self, part: str, others: Sequence[str], *, weight: float = 1.0) -> list[Term]:
        """The terms by which a part imitates each of the others, with equal shares of the weight."""
        return [self.term(part, one(Tap(other))) * (weight / len(others)) for other in others]


def imitation_options(*needs: Requirement) -> OnlyWith:
    """What the options of an imitation need to have an effect: ``needs`` of the method, and fitting ``logits``."""
    only_with = {"temperature": ("logits", SOFTENED), "others": ("logits", ("dkd",))}
    always = {"logits": needs, "standardise": needs} if needs else {}
    return {**always, **{option: (*needs, wanted) for option, wanted in only_with.items()}}
