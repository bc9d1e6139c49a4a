"""``qkd check``, ``explain``, ``layers``: inspect a recipe or a network before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--print", "complete", is_flag=True, help="Print the recipe with every default filled in.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def check(recipe: str, overrides: tuple[str, ...], complete: bool, as_json: bool) -> None:
    """Report every mistake of RECIPE, in seconds; exit code 2 if there is one."""
    from qkd import recipe as recipes
    from qkd.assembly.checkpoint_starts import CheckpointStarts
    from qkd.assembly.inputs import load_and_assemble
    from qkd.errors import RecipeError, UsageError

    starts = CheckpointStarts()
    try:
        loaded, assembly = load_and_assemble(recipe, overrides, starts)
        float_layers = _export_warnings(loaded, assembly)
    except RecipeError as error:
        if as_json:
            click.echo(json.dumps({"problems": [problem._asdict() for problem in error.problems], "plan": None}))
        raise
    except UsageError as error:
        if as_json:
            problem = {"file": recipe, "line": 0, "key": "", "message": str(error)}
            click.echo(json.dumps({"problems": [problem], "plan": None}))
        raise
    _warn(loaded, assembly, float_layers)
    if as_json:
        click.echo(json.dumps({"problems": [], "plan": [phase.name for phase in assembly.plan.phases]}))
    elif complete:
        click.echo(recipes.dump(loaded), nl=False)
    else:
        for part, taken in starts.loaded.items():
            click.echo(f"{part}: {loaded.owners[part].start_from} fits: {taken}")
        click.echo(f"{recipe}: no mistakes; `qkd explain {recipe}` describes the training")


def _warn(recipe: Recipe, assembly: Assembly, more: Sequence[str] = ()) -> None:
    """Print on stderr what is valid but suspicious."""
    from qkd import recipe as recipes
    from qkd.assembly.plan_warnings import plan_warnings

    for warning in (*recipes.warnings(recipe), *plan_warnings(recipe, assembly), *more):
        click.echo(f"warning: {warning}", err=True)


def _export_warnings(recipe: Recipe, assembly: Assembly) -> list[str]:
    """Warnings about the later export. Raises RecipeError for a student that has no exported form, or not the one asked for."""
    from qkd.assembly.export_preview import export_preview
    from qkd.errors import ExportError, RecipeError, SchemeError

    try:
        return export_preview(recipe, assembly)
    except ExportError as error:
        problem = recipe.problem("student.build", f"the product will not be exported: {error}")
        raise RecipeError([problem]) from error
    except SchemeError as error:
        raise RecipeError([recipe.problem_within(("student", "quantize"), str(error))]) from error


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def explain(recipe: str, overrides: tuple[str, ...]) -> None:
    """Describe the training of RECIPE: who teaches whom, at which layer, with which weight."""
    from qkd.assembly.checkpoint_starts import CheckpointStarts
    from qkd.assembly.inputs import load_and_assemble
    from qkd.cli.output import print_wrapped
    from qkd.report.describe import describe

    loaded, assembly = load_and_assemble(recipe, overrides, CheckpointStarts())
    _warn(loaded, assembly)
    print_wrapped(describe(loaded, assembly))


@click.command()
@click.argument("network")
@click.option(
    "--size", type=click.IntRange(min=1), default=32, show_default=True, help="Height and width of the images."
)
@click.option("--channels", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--classes", type=click.IntRange(min=1), default=10, show_default=True)
def layers(network: str, size: int, channels: int, classes: int) -> None:
    """List the layers of NETWORK: shapes, parameters, and the layers it can be matched at (`match:`)."""
    from qkd.networks.summary import layer_table

    click.echo(layer_table(network, size=size, channels=channels, classes=classes))
