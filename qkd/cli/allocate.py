"""``qkd allocate``: choose the bits of each layer's weights under a budget."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from qkd.cli.train import on_machine

POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--bits", type=POSITIVE, help="Budget: mean bits of a weight between first and last layer, such as 3.5.")
@click.option(
    "--mac-bits", type=POSITIVE, help="Budget: the same, with each weight counted as often as it is multiplied."
)
@click.option(
    "--kb", type=POSITIVE, help="Budget: size in kB (1000 bytes) of the whole file of `qkd export --storage packed`."
)
@click.option(
    "--measure",
    type=click.Choice(["loss", "logits"]),
    default="loss",
    show_default=True,
    help="The sensitivity of a layer: the loss on validation images, or how far the logits move.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the block to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@on_machine
def allocate(
    recipe: str,
    overrides: tuple[str, ...],
    bits: float | None,
    mac_bits: float | None,
    kb: float | None,
    measure: str,
    out: Path | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Choose bits for each layer of RECIPE's student, by how much worse it gets when only that layer has fewer.

    Prints a `quantize:` block for the recipe.
    """
    from qkd import recipe as recipes
    from qkd.engine.device import Machine
    from qkd.pipeline.allocate_bits import allocate_bits as choose
    from qkd.storage.atomic import write_atomic

    unit, budget = _budget({"bits": bits, "mac-bits": mac_bits, "kb": kb})
    if out is not None and out.resolve() == Path(recipe).resolve():
        raise click.UsageError(
            f"--out {out}: is the recipe itself, which would be replaced by the block; name another file"
        )
    machine = Machine(device=device, threads=threads)
    found = choose(recipes.load(recipe, overrides), budget, unit=unit, measure=measure, machine=machine)  # type: ignore[arg-type]
    block = f"quantize: {json.dumps(found.quantize)}\n"  # JSON is YAML
    if out is not None:
        write_atomic(out, lambda file: file.write(block.encode()))
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        size, cost = f"{found.kb:.1f} kB packed", f"cost ({measure}) {found.error:.3g}"
        click.echo(f"# {found.mean_bits} bits on average, {size}; {cost}")
        click.echo(block, nl=False)


def _budget(given: dict[str, float | None]) -> tuple[str, float]:
    """The one budget that was given, with its unit. Raises click.UsageError for none, several or one that is not finite."""
    budgets = [(unit, value) for unit, value in given.items() if value is not None]
    if len(budgets) != 1:
        raise click.UsageError("give one budget: --bits, --mac-bits or --kb")
    ((unit, budget),) = budgets
    if not math.isfinite(budget):
        raise click.UsageError(f"--{unit} {budget}: give a finite number")
    return unit, budget
