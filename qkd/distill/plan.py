"""Plans: what a method is. Phases, each of steps, each of learners and the terms they learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from qkd.distill.epoch_statistics import EpochStatistics
from qkd.distill.exchange import Exchange, NoExchange
from qkd.distill.heads import Head, classifier
from qkd.distill.regularizers import Regularizer
from qkd.distill.taps import SHARED, Tap
from qkd.distill.terms import Term

EXCHANGE = "exchange"  # the part name of the exchange
Shape = tuple[int, ...]  # without the batch axis


class Learner(NamedTuple):
    """What moves in a step: a part (a network, a head, the exchange), or a ``piece`` of it.

    A piece of a network is one of its stages, a piece of another part one of its submodules.
    """

    part: str
    piece: str = ""

    def __str__(self) -> str:
        return f"{self.part}.{self.piece}" if self.piece else self.part


IMPORTANCE = Learner(EXCHANGE, "importance")
ADAPTERS = Learner(EXCHANGE, "adapters")


def learner(given: str | Learner) -> Learner:
    """A whole part by its name, or a learner unchanged."""
    return given if isinstance(given, Learner) else Learner(given)


@dataclass(frozen=True)
class Step:
    """One optimizer step of a batch: ``learners`` move along the gradient of ``terms``.

    All other parameters and buffers are frozen, batch-norm statistics included. A name stands for a whole part.
    """

    learners: frozenset[Learner]
    terms: tuple[Term, ...]

    def __init__(self, learners: Iterable[str | Learner], terms: Sequence[Term]) -> None:
        object.__setattr__(self, "learners", frozenset(map(learner, learners)))
        object.__setattr__(self, "terms", tuple(terms))

    @property
    def parts(self) -> frozenset[str]:
        """The parts that learn, whole or in pieces."""
        return frozenset(each.part for each in self.learners)


@dataclass(frozen=True)
class Phase:
    """Steps that are taken for every batch, in order, for a share of the epochs."""

    name: str
    steps: tuple[Step, ...]
    share: float = 1.0

    @property
    def parts(self) -> frozenset[str]:
        """The parts that learn in any step."""
        return frozenset().union(*(step.parts for step in self.steps))


@dataclass(frozen=True)
class Plan:
    """A method made concrete. Nothing in it changes: an ensemble works with copies of its modules.

    ``product`` is the part that is deployed; ``rates`` scales the learning rate of learners, ``decays`` their weight decay.
    Each phase begins the rate schedule and the optimizer's state anew, but for the parts in ``one_schedule``: theirs go on over
    all phases in which they learn (the state from one phase to the next). ``own_rates``: learners that an optimizer of their
    own moves, Adam at this constant rate, whatever the recipe's optimizer, rate and schedule. ``views`` says which augmented
    view of a batch each network gets in training, by default number 0; networks with the same number get the same images.
    """

    phases: tuple[Phase, ...]
    exchange: Exchange = field(default_factory=NoExchange)
    heads: tuple[Head, ...] = ()
    product: str = "student"
    rates: Mapping[Learner, float] = field(default_factory=dict)
    decays: Mapping[Learner, float] = field(default_factory=dict)
    one_schedule: frozenset[str] = frozenset()
    regularizers: tuple[Regularizer, ...] = ()
    statistics: tuple[EpochStatistics, ...] = ()
    views: Mapping[str, int] = field(default_factory=dict)
    own_rates: Mapping[Learner, float] = field(default_factory=dict)

    @property
    def num_views(self) -> int:
        """How many views of a batch are needed."""
        return 1 + max(self.views.values(), default=0)

    def head(self, name: str) -> Head | None:
        return next((head for head in self.heads if head.name == name), None)

    def rate_of(self, learner: Learner) -> float:
        """A learner's share of the learning rate: its own, or else that of the part it belongs to."""
        return self.rates.get(learner, self.rates.get(Learner(learner.part), 1.0))

    def decay_of(self, learner: Learner) -> float:
        """A learner's share of the weight decay: its own, or else that of the part it belongs to."""
        return self.decays.get(learner, self.decays.get(Learner(learner.part), 1.0))

    @property
    def learners(self) -> frozenset[Learner]:
        """The learners of all phases."""
        return frozenset(each for phase in self.phases for step in phase.steps for each in step.learners)

    def deployed(self) -> tuple[Head, ...]:
        """The heads that are part of the product, in their order; none where the product is a network."""
        wanted, found = {self.product}, []
        for head in reversed(self.heads):
            if head.name in wanted:
                wanted |= head.parts
                found.append(head)
        return tuple(reversed(found))

    @property
    def product_parts(self) -> frozenset[str]:
        """The networks and heads that make up the product."""
        heads = self.deployed()
        return frozenset({self.product, *(head.name for head in heads)}.union(*(head.parts for head in heads)))


class Tied(NamedTuple):
    """How a network sees the parameters of another one, ``of``: it has none of its own, so it cannot learn.

    ``activations``: bits that each quantizer of activations with fewer takes in a forward pass with the probability
    ``share``; None: its own. ``average``: decay per step of the moving average that is seen; None: the weights as they are.
    ``dropout``: the probability that an entry of an activation is zero in training.
    """

    of: str
    activations: int | None = None
    share: float = 1.0
    average: float | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Setup:
    """What a method is given: the names of the networks, the matched stages, the classes, and the shapes at all taps.

    ``stages`` are those of ``match:``, without ``logits``. ``starts``: what each network's ``start_from:`` says. ``tied``: the
    networks that are views of another one.
    """

    student: str
    teachers: tuple[str, ...]
    stages: tuple[str, ...]
    classes: int
    shapes: Mapping[Tap, Shape]
    starts: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, Tied] = field(default_factory=dict)

    def can_learn(self, parts: Iterable[str]) -> tuple[str, ...]:
        """Those of the networks that have parameters of their own."""
        return tuple(part for part in parts if part not in self.tied)

    @property
    def all_networks(self) -> tuple[str, ...]:
        return (self.student, *self.teachers)

    def channels(self, part: str, stage: str) -> int:
        return self.shapes[Tap(part, stage)][0]

    def classifier(self, channels: int) -> nn.Module:
        """Feature maps of so many channels (B, C, H, W) -> logits (B, classes)."""
        return classifier(channels, self.classes)


Method = Callable[..., Plan]  # (setup, *, own options with types and defaults) -> Plan


def networks_needed(plan: Plan, step: Step) -> frozenset[str]:
    """The networks that have to run for a step: those its terms and heads read, and the members of the exchange."""
    parts = {tap.part for term in step.terms for tap in term.reads}
    for head in reversed(plan.heads):
        if head.name in parts:
            parts |= head.parts
    members = set(plan.exchange.members)
    if SHARED in parts or parts & members:
        parts |= members
    others = {SHARED, *(head.name for head in plan.heads), *(each.name for each in plan.statistics)}
    return frozenset(parts - others)


def epochs_per_phase(plan: Plan, epochs: int) -> tuple[int, ...]:
    """The epochs of each phase: shares of the whole, at least one each, summing to ``epochs`` where that is possible."""
    total = sum(phase.share for phase in plan.phases)
    ends, so_far = [], 0.0
    for phase in plan.phases:
        so_far += phase.share
        ends.append(round(epochs * so_far / total))
    return tuple(max(1, end - start) for start, end in zip([0, *ends], ends, strict=False))
