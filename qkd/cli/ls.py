"""``qkd ls``: list the methods, networks, quantization schemes, data sets and recipes."""

from __future__ import annotations

import json
from typing import Any

import click


def listing(what: str) -> list[tuple[str, str]]:
    """Names with one line each: methods, networks, schemes, datasets or recipes."""
    if what == "recipes":
        from qkd import recipe as recipes

        return [(name, _comment(recipes.text_of(name))) for name in recipes.bundled()]
    if what == "schemes":
        from qkd.quantizers import FAMILIES

        return [(name, family.description.split("\n")[0]) for name, family in FAMILIES.items()]
    table: dict[str, Any]
    if what == "methods":
        from qkd.methods import METHODS as table
    elif what == "networks":
        from qkd.networks import NETWORKS as table
    else:
        from qkd.data import DATASETS as table
    return [(name, (thing.__doc__ or "").strip().split("\n")[0]) for name, thing in table.items()]


def methods() -> list[dict[str, Any]]:
    """Name, paper, year, needs and one line about every method."""
    from qkd.distill.method_info import MethodInfo, method_info
    from qkd.methods import METHODS

    rows = []
    for name, summary in listing("methods"):
        info = method_info(METHODS[name]) or MethodInfo("")
        rows.append({"name": name, "paper": info.paper, "year": info.year, "needs": info.needs, "about": summary})
    return rows


def _comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""


@click.command()
@click.argument("what", type=click.Choice(["methods", "networks", "schemes", "datasets", "recipes"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def ls(what: str, as_json: bool) -> None:
    """List what can be chosen in a recipe."""
    from qkd.cli.output import print_wrapped

    if what == "methods":
        found = methods()
        rows = [(row["name"], f"{row['about']}\n{row['paper']}; needs {row['needs']}") for row in found]
    else:
        rows = listing(what)
        found = [{"name": name, "about": about} for name, about in rows]
    if as_json:
        click.echo(json.dumps({what: found}))
        return
    width = max(len(name) for name, _ in rows)
    indent = " " * (width + 2)
    for name, about in rows:
        print_wrapped(f"{name:<{width}}  " + about.replace("\n", f"\n{indent}"), indent)
