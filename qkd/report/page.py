"""Renders the report of a run from its template. Everything that comes from a file is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qkd import __version__
from qkd.report import collaboration, formatting, headline, tables, training_curves
from qkd.report.bench_table import bench_table
from qkd.report.export_table import export_rows
from qkd.report.run_data import RunData, assemble_again
from qkd.report.svg import COLOURS

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe
    from qkd.report.diagram_model import Diagram
    from qkd.report.weight_stats import Weights

TEMPLATES = Path(__file__).parent


class TeachingStep(NamedTuple):
    """One optimizer step of a plan: its heading, its diagram, its terms as rows, and notes."""

    title: str
    drawing: Markup
    rows: list[dict[str, str]]
    notes: list[str]


class Teaching(NamedTuple):
    """The steps of a plan and what its exchange does; ``missing``: why the plan cannot be built any more."""

    steps: list[TeachingStep]
    exchange: str = ""
    missing: str = ""


def page(template: str, **content: Any) -> str:
    """A template of this folder, filled in and escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(formatting=formatting, version=__version__, colours=COLOURS)
    return environment.get_template(template).render(**content)


def render(run_data: RunData) -> str:
    """The report as HTML."""
    from qkd.report.diagram import arrowheads

    rebuilt = assemble_again(run_data)
    return page(
        "report.html",
        run=run_data.run.folder.resolve().name,
        run_data=run_data,
        headline=headline,
        tables=tables,
        export_rows=export_rows(run_data.export, outdated=run_data.outdated),
        bench=bench_table(run_data.rows) if run_data.rows else None,
        curves=training_curves,
        collaboration=collaboration,
        arrowheads=arrowheads(),
        teaching=Teaching([], missing=rebuilt) if isinstance(rebuilt, str) else _teaching(run_data, *rebuilt),
        weights=None if isinstance(rebuilt, str) else _weights(run_data, rebuilt[1]),
    )


def _weights(run_data: RunData, assembly: Assembly) -> Weights | None:
    from qkd.report.weight_stats import weights

    return weights(run_data, assembly)


def _teaching(run_data: RunData, recipe: Recipe, assembly: Assembly) -> Teaching:
    from qkd.distill.plan import epochs_per_phase
    from qkd.report.diagram import draw
    from qkd.report.diagram_model import diagram_of

    plan, steps = assembly.plan, []
    facts = {"top1": _top1(run_data), "importance": training_curves.latest_importance(run_data)}
    for phase, epochs in zip(plan.phases, epochs_per_phase(plan, recipe.train.epochs), strict=True):
        for number, step in enumerate(phase.steps, 1):
            title = f"Phase {phase.name}, {formatting.counted(epochs, 'epoch')}"
            title += f", step {number} of each batch" if len(phase.steps) > 1 else ""
            diagram = diagram_of(recipe, assembly, step, **facts)  # type: ignore[arg-type]
            steps.append(TeachingStep(title, draw(diagram), _rows(diagram), _rates(assembly)))
    summary = (type(plan.exchange).__doc__ or "").strip().splitlines()[:1] if plan.exchange.members else []
    return Teaching(steps, next(iter(summary), "").replace("``", ""))


def _rows(diagram: Diagram) -> list[dict[str, str]]:
    from qkd.report.diagram_model import source_of, tap_text

    return [
        {"kind": link.kind, "weight": link.weight, "pupil": tap_text(link.pupil), "source": source_of(link)}
        for link in diagram.links
    ]


def _top1(run_data: RunData) -> dict[str, float]:
    return {name: float(value) for name, value in (run_data.result.parts or {}).items()}


def _rates(assembly: Assembly) -> list[str]:
    plan = assembly.plan
    own = [f"{part} learns by an Adam of its own at {rate:g}." for part, rate in plan.own_rates.items()]
    return [f"{part} learns at {factor:g} times the rate." for part, factor in plan.rates.items() if factor != 1] + own
