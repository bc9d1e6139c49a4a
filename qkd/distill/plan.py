"""Plan: what a method is. Phases, each of steps: who learns from which terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from qkd.distill.epoch_statistics import EpochStatistics
from qkd.distill.exchange import Exchange, NoExchange
from qkd.distill.heads import Head, classifier
from qkd.distill.regularizers import L2SP
from qkd.distill.taps import SHARED, Tap
from qkd.distill.terms import Term

EXCHANGE = "exchange"  # the name under which the parameters of the exchange learn
ADAPTERS = f"{EXCHANGE}.adapters"  # ... and those among them that lead from one shape to another
Shape = tuple[int, ...]  # without the batch


@dataclass(frozen=True)
class Step:
    """One optimizer step of a batch: ``learners`` move along the gradient of ``terms``.

    A learner is a part (``student``, a teacher, a head, ``exchange``) or a piece of it (``expert.logits``, the layers of
    that stage; ``exchange.adapters``). Whoever is not named stays bitwise as it is, batch-norm statistics included.
    """

    learners: frozenset[str]
    terms: tuple[Term, ...]

    def __init__(self, learners: Sequence[str], terms: Sequence[Term]) -> None:
        object.__setattr__(self, "learners", frozenset(learners))
        object.__setattr__(self, "terms", tuple(terms))


@dataclass(frozen=True)
class Phase:
    """Steps that are done for every batch, in order, for a share of the epochs."""

    name: str
    steps: tuple[Step, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A method made concrete. ``product`` is the part that is deployed; ``rates`` scales the learning rate of parts.

    ``views`` says which augmented view of a batch each network is shown in training; whoever is not named sees the first,
    number 0. Views of one number are the same images to the last pixel.
    """

    phases: tuple[Phase, ...]
    exchange: Exchange = field(default_factory=NoExchange)
    heads: tuple[Head, ...] = ()
    product: str = "student"
    rates: Mapping[str, float] = field(default_factory=dict)
    anchors: tuple[L2SP, ...] = ()
    surveys: tuple[EpochStatistics, ...] = ()
    views: Mapping[str, int] = field(default_factory=dict)

    @property
    def sights(self) -> int:
        """How many views of a batch are needed."""
        return 1 + max(self.views.values(), default=0)

    def head(self, name: str) -> Head | None:
        return next((head for head in self.heads if head.name == name), None)

    def rate_of(self, learner: str) -> float:
        """A learner's share of the learning rate: its own, or else that of the part it belongs to."""
        return self.rates.get(learner, self.rates.get(learner.partition(".")[0], 1.0))

    @property
    def learners(self) -> frozenset[str]:
        """Whoever learns in any phase."""
        return frozenset(learner for phase in self.phases for step in phase.steps for learner in step.learners)

    def deployed(self) -> tuple[Head, ...]:
        """The heads that are part of the product, in their order; none where the product is a network."""
        wanted, found = {self.product}, []
        for head in reversed(self.heads):
            if head.name in wanted:
                wanted |= head.parts
                found.append(head)
        return tuple(reversed(found))


@dataclass(frozen=True)
class Setup:
    """What a method is told: who plays, where one can listen, and what shapes were measured there."""

    student: str
    teachers: tuple[str, ...]
    stages: tuple[str, ...]
    classes: int
    shapes: Mapping[Tap, Shape]
    starts: Mapping[str, str] = field(default_factory=dict)  # part -> what its `start_from:` says

    @property
    def all_networks(self) -> tuple[str, ...]:
        return (self.student, *self.teachers)

    def channels(self, part: str, stage: str) -> int:
        return self.shapes[Tap(part, stage)][0]

    def classifier(self, channels: int) -> nn.Module:
        return classifier(channels, self.classes)


Method = Callable[..., Plan]  # (setup, *, own options with types and defaults) -> Plan


def networks_needed(plan: Plan, step: Step) -> frozenset[str]:
    """The networks that have to run for a step: those its terms read, heads' sources, and whoever takes part in the exchange."""
    parts = {tap.part for term in step.terms for tap in term.reads}
    for head in reversed(plan.heads):
        if head.name in parts:
            parts |= head.parts
    members = set(plan.exchange.members)
    if SHARED in parts or parts & members:
        parts |= members
    return frozenset(parts - {head.name for head in plan.heads} - {SHARED})


def epochs_per_phase(plan: Plan, epochs: int) -> tuple[int, ...]:
    """The epochs of each phase: shares of the whole, at least one each, summing to ``epochs`` where that is possible."""
    total = sum(phase.share for phase in plan.phases)
    ends, so_far = [], 0.0
    for phase in plan.phases:
        so_far += phase.share
        ends.append(round(epochs * so_far / total))
    return tuple(max(1, end - start) for start, end in zip([0, *ends], ends, strict=False))
