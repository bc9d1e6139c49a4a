"""Explain: what a recipe will do, in words; what there is to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.build import module_paths
from qkd.assembly.inputs import facts_of, load_data
from qkd.distill.plan import EXCHANGE, Phase, Plan, Step, epochs_per_phase
from qkd.distill.taps import Tap

if TYPE_CHECKING:
    from qkd.distill.heads import Head
    from qkd.distill.terms import Term
    from qkd.recipe import Recipe


def checked(path: str, overrides: Sequence[str]) -> tuple[Recipe, Assembly]:
    """The recipe and its assembly with fresh weights. Raises UsageError for whatever would fail before the first batch."""
    from qkd import recipe as recipes

    recipe = recipes.load(path, overrides)
    return recipe, assemble(recipe, facts_of(load_data(recipe)))


def describe(recipe: Recipe, assembly: Assembly) -> str:
    """Who teaches whom, where, with which weight, per phase. -> text"""
    plan = assembly.plan
    lines = [f"method   {recipe.method.name}", *(_option(*pair) for pair in recipe.method.options.items())]
    lines += ["", "parts"]
    for part, entry in recipe.networks.items():
        bits = str(entry.quantize) if entry.quantize else "float"
        size = sum(p.numel() for p in assembly.parts.part(part).parameters())
        view = f", sees view {plan.views.get(part, 0) + 1} of {plan.sights} of each batch" * (plan.sights > 1)
        lines.append(f"  {part:<10} {entry.build} {bits}, {size:,} parameters, starts from {entry.start_from}{view}")
    lines += [_head(head, plan) for head in plan.heads]
    lines += _exchange(recipe, assembly)
    for phase, epochs in zip(plan.phases, epochs_per_phase(plan, recipe.train.epochs), strict=True):
        lines += ["", f"phase {phase.name}: {epochs} epochs", *_phase(phase, assembly)]
    lines += ["", f"product  {_product(plan)}: exported, everything else is left behind"]
    return "\n".join(lines)


def _head(head: Head, plan: Plan) -> str:
    borrowed = f", classified by {head.via.part}" if head.via else ""
    stays = "" if head in plan.deployed() else ", not in the product"
    return f"  {head.name:<10} {head.about or 'classifier'} on {', '.join(map(str, head.reads))}{borrowed}{stays}"


def _product(plan: Plan) -> str:
    """The product's name and what it is made of."""
    heads = plan.deployed()
    if not heads:
        return plan.product
    names = [head.name for head in heads]
    networks = [str(tap) for head in heads for tap in head.reads if tap.part not in names]
    borrowed = [str(head.via) for head in heads if head.via]
    return f"{plan.product} ({', '.join(dict.fromkeys([*networks, *names, *borrowed]))})"


def _option(name: str, value: Any) -> str:
    return f"  {name} = {value}"


def _exchange(recipe: Recipe, assembly: Assembly) -> list[str]:
    exchange = assembly.plan.exchange
    if not exchange.members:
        return ["", "exchange  none"]
    summary = (type(exchange).__doc__ or "").strip().splitlines()[0]
    lines = ["", f"exchange  {type(exchange).__name__}: {summary}", f"  members  {', '.join(exchange.members)}"]
    for stage in exchange.stages:
        where = ", ".join(f"{part} at {module_paths(recipe, part)[stage]}" for part in exchange.members)
        lines.append(f"  {stage:<8} {where}")
        adapted = {part: exchange.adapter(Tap(part, stage)) for part in exchange.members}
        lines += [f"           adapter for {part}: {way}, not in the product" for part, way in adapted.items() if way]
    return lines


def _phase(phase: Phase, assembly: Assembly) -> list[str]:
    lines = []
    for number, step in enumerate(phase.steps, 1):
        prefix = f"  step {number}: " if len(phase.steps) > 1 else "  "
        lines.append(f"{prefix}learners {', '.join(_rate(learner, assembly) for learner in sorted(step.learners))}")
        frozen = sorted(_frozen(step, assembly))
        if frozen:
            lines.append(f"  frozen   {', '.join(frozen)}")
        lines += [f"  {_weight(term.weight):>8} x {term.name}{_chance(term)}" for term in step.terms]
    return lines


def _rate(learner: str, assembly: Assembly) -> str:
    factor = assembly.plan.rate_of(learner)
    return learner if factor == 1 else f"{learner} (rate x {factor:g})"


def _frozen(step: Step, assembly: Assembly) -> set[str]:
    from qkd.distill.plan import networks_needed

    return (
        set(networks_needed(assembly.plan, step))
        - {learner.partition(".")[0] for learner in step.learners}
        - {EXCHANGE}
    )


def _chance(term: Term) -> str:
    return f"  ({term.chance})" if term.chance is not None else ""


def _weight(weight: float | Callable[[float], float]) -> str:
    if not callable(weight):
        return f"{weight:g}"
    says = type(weight).__str__ is not object.__str__  # qkd.distill.schedules do, plain functions do not
    return f"({weight})" if says else f"{weight(0.0):g}..{weight(1.0):g}"


def layer_table(name: str, *, size: int, channels: int, classes: int) -> str:
    """Layers in the order of the graph: output shape, parameters, MACs of one image, and whether one can cut there. -> text"""
    import torch

    from qkd.networks.build import build
    from qkd.networks.tracing import record_shapes, trace

    module = trace(build(name, classes=classes, channels=channels))
    record_shapes(module, torch.zeros(2, channels, size, size))
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "MACs", "cut")]
    total = [0, 0]
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        layer = module.get_submodule(str(node.target))
        meta = node.meta.get("tensor_meta")
        shape = "x".join(map(str, meta.shape[1:])) if meta is not None and hasattr(meta, "shape") else ""
        count = sum(p.numel() for p in layer.parameters())
        work = _macs(layer, meta.shape) if shape else 0
        total = [total[0] + count, total[1] + work]
        where = "yes" if calls.count(str(node.target)) == 1 else "no: called more than once"
        numbers = (f"{number:,}" if number else "" for number in (count, work))
        rows.append((str(node.target), type(layer).__name__, shape, *numbers, where))
    rows.append(("all", "", "", *(f"{number:,}" for number in total), ""))
    blocks = sorted({path for target in calls for path in _parents(target)})
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"blocks one can cut behind as well: {', '.join(blocks)}"])


def _macs(layer: Any, shape: Sequence[int]) -> int:
    """Multiplications of one image: every weight at every place its output channel is computed at."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() < 2:
        return 0
    places = math.prod(shape[1:]) // len(weight)
    return int(weight.numel() * places)


def _parents(target: str) -> list[str]:
    words = target.split(".")
    return [".".join(words[:i]) for i in range(1, len(words))]


def listing(what: str) -> list[tuple[str, str]]:
    """Names with one line each: methods, networks, schemes, datasets or recipes."""
    if what == "recipes":
        from qkd import recipe as recipes

        return [(name, _comment(recipes.text_of(name))) for name in recipes.bundled()]
    table: dict[str, Any]
    if what == "methods":
        from qkd.methods import METHODS as table
    elif what == "networks":
        from qkd.networks import NETWORKS as table
    elif what == "datasets":
        from qkd.data import DATASETS as table
    else:
        from qkd.quantizers import FAMILIES as table
    return [(name, (thing.__doc__ or "").strip().split("\n")[0]) for name, thing in table.items()]


def methods() -> list[dict[str, Any]]:
    """What there is to know of every method before choosing it: name, paper, year, needs, and one line about it."""
    from qkd.distill.method_info import MethodInfo, method_info
    from qkd.methods import METHODS

    rows = []
    for name, summary in listing("methods"):
        known = method_info(METHODS[name]) or MethodInfo("")
        rows.append({"name": name, "paper": known.paper, "year": known.year, "needs": known.needs, "about": summary})
    return rows


def _comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""
