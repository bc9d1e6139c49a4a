"""Page: the evidence of a run put into the template. Everything that comes from a file is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qkd import __version__
from qkd.report import formatting, headline, tables, training_curves
from qkd.report.run_data import RunData, assemble_again
from qkd.report.svg import COLOURS

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe
    from qkd.report.diagram_model import Diagram
    from qkd.report.weight_stats import Weights

TEMPLATES = Path(__file__).parent


class Act(NamedTuple):
    """One optimizer step of a plan: its heading, its picture, and its terms as rows."""

    title: str
    drawing: Markup
    rows: list[dict[str, str]]
    notes: list[str]


class Teaching(NamedTuple):
    """Who teaches whom; ``missing`` says why that is not known any more."""

    acts: list[Act]
    exchange: str = ""
    missing: str = ""


def page(template: str, **content: Any) -> str:
    """A template of ours, filled in and escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=formatting, version=__version__, colours=COLOURS)
    return environment.get_template(template).render(**content)


def render(evidence: RunData) -> str:
    """The report as HTML."""
    from qkd.report.diagram import arrowheads

    found = assemble_again(evidence)
    return page(
        "report.html",
        run=evidence.run.folder.resolve().name,
        evidence=evidence,
        verdict=headline,
        tables=tables,
        curves=training_curves,
        arrowheads=arrowheads(),
        teaching=Teaching([], missing=found) if isinstance(found, str) else _teaching(evidence, *found),
        weights=None if isinstance(found, str) else _weights(evidence, found[1]),
    )


def _weights(evidence: RunData, assembly: Assembly) -> Weights | None:
    from qkd.report.weight_stats import weights

    return weights(evidence, assembly)


def _teaching(evidence: RunData, recipe: Recipe, assembly: Assembly) -> Teaching:
    from qkd.distill.plan import epochs_per_phase
    from qkd.report.diagram import draw
    from qkd.report.diagram_model import diagram_of

    plan, acts = assembly.plan, []
    facts = {"top1": _top1(evidence), "importance": training_curves.latest_importance(evidence)}
    for phase, epochs in zip(plan.phases, epochs_per_phase(plan, recipe.train.epochs), strict=True):
        for number, step in enumerate(phase.steps, 1):
            title = f"Phase {phase.name}, {formatting.counted(epochs, 'epoch')}"
            title += f", step {number} of each batch" if len(phase.steps) > 1 else ""
            scene = diagram_of(recipe, assembly, step, **facts)  # type: ignore[arg-type]
            acts.append(Act(title, draw(scene), _rows(scene), _rates(assembly)))
    summary = (type(plan.exchange).__doc__ or "").strip().splitlines()[:1] if plan.exchange.members else []
    return Teaching(acts, next(iter(summary), "").replace("``", ""))


def _rows(scene: Diagram) -> list[dict[str, str]]:
    from qkd.report.diagram_model import source_of, tap_text

    return [
        {"kind": link.kind, "weight": link.weight, "pupil": tap_text(link.pupil), "source": source_of(link)}
        for link in scene.links
    ]


def _top1(evidence: RunData) -> dict[str, float]:
    found: Mapping[str, Any] = evidence.result.get("parts") or {}
    return {name: float(value) for name, value in found.items()}


def _rates(assembly: Assembly) -> list[str]:
    return [
        f"{part} learns at {factor:g} times the rate." for part, factor in assembly.plan.rates.items() if factor != 1
    ]
