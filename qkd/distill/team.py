"""Team: teachers that exchange features, who speaks for them, and who of them learns from labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qkd.distill.exchange import Fuse
from qkd.distill.heads import Head, trainable
from qkd.distill.imitation import Imitation
from qkd.distill.plan import ADAPTERS, IMPORTANCE, Learner, Phase, Setup, Step
from qkd.distill.taps import SHARED, Tap
from qkd.distill.targets import Target, min_logit
from qkd.distill.terms import Term, label

COMBINED = "combined"  # the head of `combined: head`
Combined = Literal["mean", "weighted", "head"]
Teach = Literal["combined", "each"]


@dataclass(frozen=True)
class Team:
    """The teachers of a setup behind their exchange; ``combined`` says how their combined logits are made, ``teach`` whether
    losses act on these or on every teacher's own. ``heads``: the classifier of ``combined: head``."""

    setup: Setup
    fuse: Fuse
    combined: Combined
    teach: Teach
    heads: tuple[Head, ...]

    @classmethod
    def of(cls, setup: Setup, fuse: Fuse, combined: Combined, teach: Teach) -> Team:
        """The team, with a new classifier on the last fused features where ``combined`` is head."""
        last = Tap(SHARED, setup.stages[-1])
        width = setup.channels(setup.teachers[0], last.stage)
        heads = (Head(COMBINED, [last], setup.classifier(width)),) if combined == "head" else ()
        return cls(setup, fuse, combined, teach, heads)

    @property
    def learners(self) -> tuple[str, ...]:
        """The teachers that have parameters of their own."""
        return self.setup.can_learn(self.setup.teachers)

    @property
    def logits(self) -> Tap:
        """Where the combined logits are."""
        return Tap(COMBINED if self.combined == "head" else SHARED)

    def pupils(self, *, learn: bool) -> tuple[str, ...]:
        """The parts that learn from labels: the combined teacher or every teacher, while the teachers ``learn``.

        A combined teacher with parameters of its own learns from labels in any case.
        """
        own = self.combined == "head" or (self.combined == "weighted" and bool(self.fuse.weighted_stages))
        together = (self.logits.part,) if own or (learn and self.teach == "combined") else ()
        return (*(self.learners if learn and self.teach == "each" else ()), *together)

    @property
    def pieces(self) -> list[str | Learner]:
        """What the teachers have in common and that learns: importance, adapters, classifier."""
        importance = (IMPORTANCE,) if self.fuse.weighted_stages else ()
        return [*importance, *((ADAPTERS,) if len(self.fuse.adapters) else ()), *trainable(self.heads)]

    def preparation(self, share: float, *, alpha: float, mutual: float, imitation: Imitation) -> Phase:
        """A phase in which the teachers learn alone, from labels with weight ``alpha`` and from each other with ``mutual``.

        The latter is an imitation of the min-logit of all teachers. Source: Guo et al. 2020 (KDCL), MinLogit.
        """
        target = min_logit([Tap(teacher) for teacher in self.setup.teachers])
        alone = [imitation.term(teacher, target) * mutual for teacher in self.learners if mutual]
        labels = [label(part) * alpha for part in self.pupils(learn=True)]
        return Phase("teachers", (Step([*self.learners, *self._reached()], [*labels, *alone]),), share)

    def _reached(self) -> list[str | Learner]:
        """The pieces that the teachers' labels reach: without the exchange a combined teacher's alone."""
        unreached = (
            {ADAPTERS} if self.combined == "weighted" else {ADAPTERS, IMPORTANCE} if self.combined == "mean" else set()
        )
        return self.pieces if self.fuse.write_back else [piece for piece in self.pieces if piece not in unreached]


def taught(
    weights: Mapping[str, float],
    imitating: Mapping[str, float],
    target: Target,
    imitation: Imitation,
    *,
    detach_target: bool,
) -> list[Term]:
    """The cross-entropy of every part with its weight, and the imitation of the target by those in ``imitating``, with theirs."""
    terms = []
    for part, weight in weights.items():
        terms.append(label(part) * weight)
        if part in imitating:
            terms.append(imitation.term(part, target, detach_target=detach_target) * imitating[part])
    return terms
