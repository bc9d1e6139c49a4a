"""``qkd allocate``: bits of each layer's weights under a budget."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qkd.commands.train import on_machine


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    help="Mean bits of the weights between first and last layer, such as 3.5.",
)
@click.option(
    "--by",
    type=click.Choice(["size", "macs"]),
    default="size",
    show_default=True,
    help="Count each weight once, or as often as it is multiplied.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the block to this file as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@on_machine
def allocate(
    recipe: str,
    overrides: tuple[str, ...],
    budget: float,
    by: str,
    out: Path | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Choose bits for each layer's weights of RECIPE's student, by how much the logits move when it alone is lowered.

    Prints a `quantize:` block for the recipe.
    """
    from qkd import recipe as recipes
    from qkd.allocate import allocate as choose
    from qkd.atomic import place
    from qkd.engine.machine import Machine

    found = choose(recipes.load(recipe, overrides), budget, by=by, machine=Machine(device=device, threads=threads))  # type: ignore[arg-type]
    block = f"quantize: {json.dumps(found['quantize'])}\n"  # JSON is YAML
    if out is not None:
        place(out, lambda file: file.write(block.encode()))
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"# {found['mean_bits']} bits on average; change of the logits {found['error']:.3g} of their square")
        click.echo(block, nl=False)
