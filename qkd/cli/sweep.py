"""``qkd sweep``: many runs of one recipe, a grid or a search, ending in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkd.pipeline.launchers import LAUNCHERS

if TYPE_CHECKING:
    from qkd.pipeline.sweep import Point


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--over", multiple=True, metavar="KEY=V1,V2,...", help="A setting and the values it takes; repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), help="Every point with so many seeds.")
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=LOW:HIGH[:log]",
    help="Let Optuna choose a setting between two numbers, or of several values; repeatable.",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many runs a search makes in all.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time.")
@click.option(
    "--launcher",
    type=click.Choice(list(LAUNCHERS)),
    default="local",
    show_default=True,
    help="Where runs are computed: this machine, Slurm through submitit, a Ray cluster.",
)
@click.option("--launch-with", multiple=True, metavar="KEY=VALUE", help="A setting of the launcher; repeatable.")
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
    search: tuple[str, ...],
    trials: int | None,
    jobs: int,
    launcher: Any,
    launch_with: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **each: Any,
) -> None:
    """Train RECIPE once for every combination of values, or as a search proposes, and compare.

    Started again, it goes on where it was. A search is judged on the validation split.

    \b
    qkd sweep recipes/digits_cmtkd_w2a2.yaml --over train.rate=0.1,0.05 --over method.alpha=0.5,1 --seeds 3
    qkd sweep recipes/digits_cmtkd_w2a2.yaml --search train.rate=0.01:0.5:log --trials 20
    """
    from qkd import recipe as recipes
    from qkd.pipeline import sweep as sweeping
    from qkd.pipeline.launchers import launcher_for as launcher_of

    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    options = [word for name, value in each.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]

    def check(point: Point) -> None:  # every mistake before the first run
        recipes.load(recipe, (*overrides, *point.changes))

    _one_of(search, trials, over, seeds)
    launch = launcher_of(launcher, folder, launch_with)
    if search:
        from qkd.pipeline.search import parse_range
        from qkd.pipeline.search import run_search as find

        def train(point: Point) -> str | None:
            return sweeping.train(recipe, point, overrides, options, launch)

        ranges = [parse_range(text) for text in search]
        grid, failures = find(folder, ranges, trials or 1, train, check=check, jobs=jobs, listen=_teller(trials or 1))
    else:
        grid = sweeping.points(folder, over, seeds)
        for point in grid:
            check(point)
        failures = sweeping.run_grid(
            recipe,
            grid,
            overrides=overrides,
            options=options,
            jobs=jobs,
            listen=_teller(len(grid)),
            launch=launch,
        )
    _end(grid, failures, as_json=as_json)


def _one_of(search: Sequence[str], trials: int | None, over: Sequence[str], seeds: int | None) -> None:
    from qkd.errors import UsageError

    if bool(search) != (trials is not None):
        raise UsageError("--search and --trials belong together: what to choose, and how many runs to choose with")
    if search and (over or seeds):
        raise UsageError("--search proposes values, --over and --seeds make a grid: give one or the other")


def _teller(count: int) -> Callable[[Point, str], None]:
    done = 0

    def tell(point: Point, state: str) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done}/{count} {point.name}: {state}", err=True)

    return tell


def _end(grid: Sequence[Point], failures: dict[str, str], *, as_json: bool) -> None:
    from qkd.cli.compare import show
    from qkd.pipeline import sweep as sweeping

    rows = sweeping.rows(grid)
    for damage in filter(None, (point.damage for point in grid)):
        click.echo(f"warning: {damage}; the same command makes it again", err=True)
    if as_json:
        click.echo(json.dumps({"rows": rows, "failed": failures}))
    elif rows:
        show(rows)
        if early := sum(not row["finished"] for row in rows):
            click.echo(f"{early} of these {len(rows)} stopped before their end (--max-steps)", err=True)
    sweeping.require(failures)
