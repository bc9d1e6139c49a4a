"""Scene: who teaches whom in one optimizer step of a plan, as lanes, links and buses; where they stand is left to the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from qkd.assemble import STUDENT, Assembly
from qkd.plan import EXCHANGE, Step, needed
from qkd.recipe import Recipe
from qkd.taps import LOGITS, SHARED, Tap
from qkd.terms import Term

Kind = Literal["network", "exchange", "head"]


@dataclass(frozen=True)
class Lane:
    """A participant: a network, the exchange or a head; ``stages`` are those at which something happens to it."""

    part: str
    about: str
    state: str
    kind: Kind
    stages: tuple[str, ...]
    reads: tuple[Tap, ...] = ()  # of a head
    product: bool = False


@dataclass(frozen=True)
class Link:
    """A term: its first tap is the pupil, the others are its sources; none of them: it learns from the labels."""

    kind: str
    weight: str
    pupil: Tap
    sources: tuple[Tap, ...]
    target: str

    @property
    def joined(self) -> bool:
        """Whether the sources make one target together."""
        return len(self.sources) > 1 or self.pupil in self.sources


@dataclass(frozen=True)
class Bus:
    """The exchange at one stage: ``members`` hand it their tensors; ``back``: what it makes of them flows on in all of them."""

    stage: str
    members: tuple[str, ...]
    back: bool
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Scene:
    """One picture. ``columns`` are the stages, from the images to the logits."""

    columns: tuple[str, ...]
    lanes: tuple[Lane, ...]
    links: tuple[Link, ...]
    buses: tuple[Bus, ...]

    @property
    def label(self) -> str:
        """The scene in words."""
        parts = ", ".join(f"{lane.part} ({', '.join(filter(None, (lane.about, lane.state)))})" for lane in self.lanes)
        buses = (f"{', '.join(bus.members)} exchange features at {bus.stage}" for bus in self.buses)
        links = (f"{link.pupil} learns from {source_of(link)} by {link.kind}, weight {link.weight}" for link in self.links)
        return ". ".join([f"Parts: {parts}", *buses, *links])


def source_of(link: Link) -> str:
    """Whom a pupil learns from, in words."""
    if not link.sources:
        return "the labels" if link.kind == "label" else "itself"
    listed = ", ".join(map(str, link.sources))
    return f"{link.target} of {listed}" if link.joined or link.target not in listed else listed


def scene_of(
    recipe: Recipe,
    assembly: Assembly,
    step: Step,
    *,
    top1: Mapping[str, float] | None = None,
    importance: Mapping[tuple[str, str], float] | None = None,
) -> Scene:
    """The scene of one step; ``top1`` adds accuracies of parts, ``importance`` (part, stage) the weights they ended with."""
    plan = assembly.plan
    links = tuple(link_of(term) for term in step.terms)
    running = needed(plan, step)
    read = {tap for term in step.terms for tap in term.reads}
    heads = [head for head in plan.heads if any(tap.part == head.name for tap in read)]
    read |= {tap for head in heads for tap in head.reads}
    columns = (*assembly.cast.stages, LOGITS)
    buses = _buses(assembly, running, read, importance or {})
    shared = tuple(stage for stage in columns if any(bus.stage == stage for bus in buses))
    lanes = [_network(recipe, assembly, step, part, top1 or {}) for part in assembly.cast.teachers if part in running]
    if shared:
        lanes.append(Lane(SHARED, _summary(assembly), _state(step, EXCHANGE, (top1 or {}).get(SHARED)), "exchange", shared))
    for head in heads:
        state = _state(step, head.name, (top1 or {}).get(head.name))
        lanes.append(Lane(head.name, "head", state, "head", (LOGITS,), head.reads, product=plan.product == head.name))
    if STUDENT in running:
        lanes.append(_network(recipe, assembly, step, STUDENT, top1 or {}))
    return Scene(columns, tuple(lanes), links, buses)


def link_of(term: Term) -> Link:
    """A term as a link."""
    kind, _, rest = term.name.partition("/")
    return Link(kind, weight_of(term.weight), term.reads[0], term.reads[1:], rest.partition("<")[2])


def weight_of(weight: float | Callable[[float], float]) -> str:
    """A weight, or the first and last value of a schedule."""
    return f"{weight(0.0):g}..{weight(1.0):g}" if callable(weight) else f"{weight:g}"


def _network(recipe: Recipe, assembly: Assembly, step: Step, part: str, top1: Mapping[str, float]) -> Lane:
    entry = recipe.networks[part]
    build = entry.build.rpartition(":")[2]
    bits = str(entry.quantize) if entry.quantize else "float"
    stages = (*assembly.cast.stages, LOGITS)
    state = _state(step, part, top1.get(part))
    return Lane(part, f"{shortened(build)} {bits}", state, "network", stages, product=assembly.plan.product == part)


def shortened(name: str, longest: int = 20) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _state(step: Step, part: str, top1: float | None) -> str:
    learners = {learner.partition(".")[0] for learner in step.learners}
    stages = sorted(learner.partition(".")[2] for learner in step.learners if learner.startswith(f"{part}."))
    what = f"learns {', '.join(stages)}" if stages else "learns" if part in learners else "frozen"
    what = "" if part == EXCHANGE and part not in learners else what
    return " · ".join(filter(None, [what, "" if top1 is None else f"{top1:.1f} %"]))


def _buses(
    assembly: Assembly, running: frozenset[str], read: set[Tap], importance: Mapping[tuple[str, str], float]
) -> tuple[Bus, ...]:
    exchange = assembly.plan.exchange
    members = tuple(part for part in exchange.members if part in running)
    if not members:
        return ()
    stages = [*exchange.stages, *([LOGITS] if Tap(SHARED) in read else [])]
    return tuple(
        Bus(
            stage,
            members,
            bool(getattr(exchange, "write_back", False)) and stage != LOGITS,
            {part: importance[part, stage] for part in members if (part, stage) in importance},
        )
        for stage in stages
    )


def _summary(assembly: Assembly) -> str:
    return type(assembly.plan.exchange).__name__.lower()
