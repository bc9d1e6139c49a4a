"""Who teaches whom in one optimizer step of a plan, as lanes, links and buses; positions are computed by the layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qkd.assembly.assemble import Assembly
from qkd.assembly.build import STUDENT
from qkd.distill.epoch_statistics import STATISTICS
from qkd.distill.heads import Head
from qkd.distill.plan import EXCHANGE, Plan, Step, networks_needed
from qkd.distill.taps import LOGITS, SHARED, Tap
from qkd.distill.terms import Term
from qkd.recipe import Recipe, ViewEntry

Kind = Literal["network", "exchange", "head"]


@dataclass(frozen=True)
class Lane:
    """A participant: a network, the exchange or a head. ``stages``: those where features are read or exchanged.

    ``about`` and ``state`` are lines of text. ``reads``: the taps of a head. ``product``: whether it is exported.
    """

    part: str
    about: str
    state: str
    kind: Kind
    stages: tuple[str, ...]
    reads: tuple[Tap, ...] = ()  # of a head
    product: bool = False


@dataclass(frozen=True)
class Link:
    """A term of the loss. The pupil learns from the sources; without sources, from the labels or from itself."""

    kind: str
    weight: str
    pupil: Tap
    sources: tuple[Tap, ...]
    target: str

    @property
    def mirrored(self) -> tuple[str, str, Tap, tuple[Tap, ...]]:
        """The link in the other direction with the same kind and weight, as a key."""
        return self.kind, self.weight, self.sources[0], (self.pupil,)

    @property
    def joined(self) -> bool:
        """Whether the sources form one joint target."""
        return len(self.sources) > 1 or self.pupil in self.sources


@dataclass(frozen=True)
class Bus:
    """The exchange at one stage. ``members`` send their features; ``back``: the result replaces them in all members."""

    stage: str
    members: tuple[str, ...]
    back: bool
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Diagram:
    """A diagram. ``columns``: the stages, from the images to the logits."""

    columns: tuple[str, ...]
    lanes: tuple[Lane, ...]
    links: tuple[Link, ...]
    buses: tuple[Bus, ...]

    @property
    def label(self) -> str:
        """The diagram in words, for readers who cannot see it."""
        parts = ", ".join(f"{lane.part} ({', '.join(filter(None, (lane.about, lane.state)))})" for lane in self.lanes)
        buses = (f"{', '.join(bus.members)} exchange features at {bus.stage}" for bus in self.buses)
        links = (
            f"{tap_text(link.pupil)} learns from {source_of(link)} by {link.kind}, weight {link.weight}"
            for link in self.links
        )
        return ". ".join([f"Parts: {parts}", *buses, *links])


def tap_text(tap: Tap) -> str:
    """A tap as text; a part by its name alone where its output is meant."""
    return tap.part if tap.stage == LOGITS else str(tap)


def source_of(link: Link) -> str:
    """The sources of a pupil, in words."""
    if not link.sources:
        return "the labels" if link.kind == "label" else "itself"
    listed = ", ".join(map(tap_text, link.sources))
    target = link.target.removesuffix(f".{LOGITS}")
    return f"{target} of {listed}" if link.joined or target not in listed else listed


def diagram_of(
    recipe: Recipe,
    assembly: Assembly,
    step: Step,
    *,
    top1: Mapping[str, float] | None = None,
    importance: Mapping[tuple[str, str], float] | None = None,
) -> Diagram:
    """The diagram of one step. ``top1``: accuracies of parts to show; ``importance``: weights by (part, stage) to show."""
    plan, scores = assembly.plan, top1 or {}
    running = networks_needed(plan, step)
    heads = _heads(plan, step, running)
    read = {tap for term in step.terms for tap in term.reads} | {tap for head in heads for tap in head.reads}
    read = {tap for tap in read if tap.stage != STATISTICS}
    columns = tuple(dict.fromkeys((*assembly.setup.stages, LOGITS)))
    members = tuple(part for part in plan.exchange.members if part in running)
    buses = _buses(plan, members, read, importance or {})
    lanes = [_network(recipe, assembly, step, part, scores) for part in assembly.setup.teachers if part in running]
    lanes += _exchanged(
        plan, step, columns, buses, {*recipe.networks, *(head.name for head in plan.heads)}, read, scores
    )
    lanes += [_head(head, plan, step, scores) for head in heads]
    if STUDENT in running:
        lanes.append(_network(recipe, assembly, step, STUDENT, scores))
    return Diagram(columns, tuple(lanes), tuple(map(link_of, step.terms)), buses)


def _heads(plan: Plan, step: Step, running: Collection[str]) -> list[Head]:
    """The heads that terms read, the heads these read in turn, and the product where it is a head that can run."""
    wanted = {tap.part for term in step.terms for tap in term.reads}
    wanted |= {head.name for head in plan.deployed() if {tap.part for tap in head.reads} <= {*running, *wanted}}
    for head in reversed(plan.heads):
        wanted |= head.parts if head.name in wanted else set()
    return [head for head in plan.heads if head.name in wanted]


def _head(head: Head, plan: Plan, step: Step, top1: Mapping[str, float]) -> Lane:
    about = f"through {head.via.part}" if head.via else head.about.partition(",")[0] or "head"
    state = _state(step, head.name, top1.get(head.name))
    state = state if head.trainable else state.removeprefix("frozen").removeprefix(" · ")
    return Lane(head.name, about, state, "head", (LOGITS,), head.reads, product=plan.product == head.name)


def _exchanged(
    plan: Plan,
    step: Step,
    columns: Sequence[str],
    buses: Sequence[Bus],
    other_parts: Collection[str],
    read: Collection[Tap],
    top1: Mapping[str, float],
) -> list[Lane]:
    """A lane for each name under which the exchange records features; one for the exchange itself if there is none."""
    if not buses:
        return []
    names = list(dict.fromkeys(tap.part for tap in sorted(read) if tap.part not in other_parts)) or [SHARED]
    at = {name: {tap.stage for tap in read if tap.part == name} for name in names}
    at[names[0]] |= {bus.stage for bus in buses}
    score, pieces = top1.get(names[0]), [each for each in step.learners if each.part == EXCHANGE and each.piece]
    about = type(plan.exchange).__name__.lower() + (f" · {score:.1f} %" if score is not None else "")
    state = "learns" if len(pieces) > 1 else _state(step, EXCHANGE, None)  # short: arrows leave to its right
    return [Lane(name, about, state, "exchange", tuple(c for c in columns if c in at[name])) for name in names]


def link_of(term: Term) -> Link:
    """A term as a link."""
    sources = tuple(tap for tap in term.reads[1:] if tap.stage != STATISTICS)
    return Link(term.kind, weight_of(term.weight), term.reads[0], sources, term.source)


def weight_of(weight: float | Callable[[float], float]) -> str:
    """A weight as text, or the first and last value of a schedule."""
    return f"{weight(0.0):.2g}..{weight(1.0):.2g}" if callable(weight) else f"{weight:.3g}"


def _network(recipe: Recipe, assembly: Assembly, step: Step, part: str, top1: Mapping[str, float]) -> Lane:
    stages = (*assembly.setup.stages, LOGITS)
    state = _state(step, part, top1.get(part))
    state = state.replace("frozen", "view") if part in recipe.views else state
    return Lane(part, _about(recipe, part), state, "network", stages, product=assembly.plan.product == part)


def _about(recipe: Recipe, part: str) -> str:
    """What a network is, short: a lane of the diagram is narrow."""
    entry = recipe.networks[part]
    if isinstance(entry, ViewEntry):
        seen = ["average"] * (entry.average is not None) + [f"a{entry.activations}"] * (entry.activations is not None)
        seen += ["dropout"] * (entry.dropout > 0)
        return f"{shortened(entry.of)}, {' '.join(seen)}"
    build = entry.build.rpartition(":")[2]
    return f"{shortened(build)} {entry.quantize.title if entry.quantize else 'float'}"


def shortened(name: str, longest: int = 20) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _state(step: Step, part: str, top1: float | None) -> str:
    stages = sorted(learner.piece for learner in step.learners if learner.part == part and learner.piece)
    what = f"learns {', '.join(stages)}" if stages else "learns" if part in step.parts else "frozen"
    what = "" if part == EXCHANGE and part not in step.parts else what
    return " · ".join(filter(None, [what, "" if top1 is None else f"{top1:.1f} %"]))


def _buses(
    plan: Plan, members: tuple[str, ...], read: Collection[Tap], importance: Mapping[tuple[str, str], float]
) -> tuple[Bus, ...]:
    if not members:
        return ()
    logits = any(tap == Tap(SHARED) for tap in read)
    stages = dict.fromkeys([*plan.exchange.stages, *([LOGITS] if logits else [])])
    back = bool(getattr(plan.exchange, "write_back", False))
    weights = {
        stage: {part: importance[part, stage] for part in members if (part, stage) in importance} for stage in stages
    }
    return tuple(Bus(stage, members, back and stage != LOGITS, weights[stage]) for stage in stages)
