"""``qkd sweep``: train many runs of one recipe, over a grid or by a search, and compare them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkd.cli.choices import ChoiceOf

if TYPE_CHECKING:
    from qkd.pipeline.sweep import Point


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--over", multiple=True, metavar="KEY=V1,V2,...", help="A setting and its values; repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), help="Train every point with this many seeds.")
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=LOW:HIGH[:log]",
    help="Let Optuna choose a setting between two numbers, or from several values; repeatable.",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many runs a search makes in total.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time.")
@click.option(
    "--launcher",
    type=ChoiceOf("qkd.pipeline.launchers:LAUNCHERS"),
    default="local",
    show_default=True,
    help="Where runs are computed: on this machine, on Slurm through submitit, on a Ray cluster.",
)
@click.option("--launch-with", multiple=True, metavar="KEY=VALUE", help="A setting of the launcher; repeatable.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder of the runs. [default: runs/<recipe name>-sweep]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each run.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop each run after this many batches.")
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
    """Train RECIPE once for every combination of values, or as a search proposes, and compare the runs.

    The same command again continues where it stopped. A search is scored on the validation split.

    \b
    qkd sweep recipes/digits_cmtkd_w2a2.yaml --over train.rate=0.1,0.05 --over method.alpha=0.5,1 --seeds 3
    qkd sweep recipes/digits_cmtkd_w2a2.yaml --search train.rate=0.01:0.5:log --trials 20
    """
    from qkd import recipe as recipes
    from qkd.pipeline import sweep as sweeping
    from qkd.pipeline.launchers import launcher_for

    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    options = [word for name, value in each.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]

    def check(point: Point) -> None:
        recipes.load(recipe, (*overrides, *point.changes))

    def train(point: Point) -> str | None:
        return sweeping.train(recipe, point, overrides, options, launch)

    _require_grid_or_search(search, trials, over, seeds)
    launch = launcher_for(launcher, folder, launch_with)
    if search:
        _end(*_search(folder, search, trials or 1, train, check, jobs), as_json=as_json)
        return
    grid = sweeping.points(folder, over, seeds)
    for point in grid:  # every mistake is found before the first run
        check(point)
    failures = sweeping.run_grid(grid, train, jobs=jobs, listen=_progress(len(grid)))
    _end(grid, failures, as_json=as_json)


def _search(
    folder: Path,
    search: Sequence[str],
    trials: int,
    train: Callable[[Point], str | None],
    check: Callable[[Point], None],
    jobs: int,
) -> tuple[list[Point], dict[str, str]]:
    from qkd.pipeline.search import parse_range, run_search

    ranges = [parse_range(text) for text in search]
    return run_search(folder, ranges, trials, train, check=check, jobs=jobs, listen=_progress(trials))


def _require_grid_or_search(search: Sequence[str], trials: int | None, over: Sequence[str], seeds: int | None) -> None:
    from qkd.errors import UsageError

    if bool(search) != (trials is not None):
        raise UsageError(
            "--search and --trials belong together: the settings to choose, and the number of runs",
            key="search.without-trials",
        )
    if search and (over or seeds):
        raise UsageError(
            "--search proposes values, --over and --seeds make a grid: give one or the other", key="search.with-a-grid"
        )


def _progress(count: int) -> Callable[[Point, str], None]:
    """Prints a line for each run that ends."""
    done = 0

    def show(point: Point, state: str) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done}/{count} {point.name}: {state}", err=True)

    return show


def _end(grid: Sequence[Point], failures: dict[str, str], *, as_json: bool) -> None:
    from qkd.cli.compare import show
    from qkd.pipeline import sweep as sweeping

    rows = sweeping.rows(grid)
    for damage in filter(None, (point.damage for point in grid)):
        click.echo(f"warning: {damage}; the same command trains it again", err=True)
    if as_json:
        click.echo(json.dumps({"rows": [row.to_json() for row in rows], "failed": failures}))
    elif rows:
        show([row.run for row in rows])
        if early := sum(not row.finished for row in rows):
            click.echo(f"{early} of these {len(rows)} stopped before their end (--max-steps)", err=True)
    sweeping.require(failures)
