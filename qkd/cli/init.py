"""``qkd init``, ``schema``, ``env``: a recipe to start from, its JSON Schema, facts for a bug report."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("name", default="digits_cmtkd_w2a2")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file. [default: <name>.yaml]")
def init(name: str, output: Path | None) -> None:
    """Copy a recipe that comes with qkd (`qkd ls recipes`), to edit it."""
    import qkd.recipe as recipes
    from qkd.errors import RunError

    path = output or Path(f"{name}.yaml")
    text = recipes.text_of(name)
    if path.exists():
        raise RunError(f"{path}: is there already; choose another name with -o", key="init.file-exists")
    path.write_text(text)
    click.echo(f"{path}: written; next: qkd check {path}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import qkd.recipe as recipes

    click.echo(json.dumps(recipes.schema(), indent=2))


@click.command()
def env() -> None:
    """Print versions, processor and devices, for a bug report."""
    from qkd.storage.environment import environment

    for name, value in environment().items():
        if name != "command":
            click.echo(f"{name:<12} {value}")
