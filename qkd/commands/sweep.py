"""``qkd sweep``: a grid of runs of one recipe, ending in a table."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--over", multiple=True, metavar="KEY=V1,V2,...", help="A setting and the values it takes; repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), help="Every point with so many seeds.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder of the runs. [default: runs/<recipe name>-sweep]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the CPU for each run.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop each run after so many batches.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def sweep(
    recipe: str,
    overrides: tuple[str, ...],
    over: tuple[str, ...],
    seeds: int | None,
    jobs: int,
    out: Path | None,
    device: str,
    threads: int | None,
    max_steps: int | None,
    as_json: bool,
) -> None:
    """Train RECIPE once for every combination of values, and compare. Started again, it goes on where it was.

    \b
    qkd sweep recipes/digits_cmtkd_w2a2.yaml --over train.rate=0.1,0.05 --over method.alpha=0.5,1 --seeds 3
    """
    from qkd import recipe as recipes
    from qkd import sweep as sweeping
    from qkd.commands.compare import show

    grid = sweeping.points(out or Path("runs") / f"{Path(recipe).stem}-sweep", over, seeds)
    for point in grid:
        recipes.load(recipe, (*overrides, *point.changes))  # every mistake before the first run
    options = ["--device", device]
    options += ["--threads", str(threads)] if threads else []
    options += ["--max-steps", str(max_steps)] if max_steps else []
    done = 0

    def tell(point: sweeping.Point, state: str) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done}/{len(grid)} {point.name}: {state}", err=True)

    failures = sweeping.sweep(recipe, grid, overrides=overrides, options=options, jobs=jobs, listen=tell)
    rows = sweeping.rows(grid)
    if as_json:
        click.echo(json.dumps({"rows": rows, "failed": failures}))
    elif rows:
        show(rows)
    sweeping.require(failures)
