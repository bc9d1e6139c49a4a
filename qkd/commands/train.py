"""``qkd train``: the whole way to a trained product and its run folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

machine_options = [
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
    click.option("--threads", type=click.IntRange(min=1), help="Threads of the CPU; 1 makes runs bit-identical."),
]


def on_machine(function: Any) -> Any:
    """The options that say where to compute."""
    for option in machine_options:
        function = option(function)
    return function


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder. [default: runs/<recipe name>[-N]]")
@click.option("--resume", is_flag=True, help="Go on with the newest run of this recipe (or with --out).")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many batches.")
@click.option(
    "--dry-run", is_flag=True, help="Everything once, quickly: build, two batches, export, verify. Nothing is kept."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@on_machine
def train(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    precision: str,
    max_steps: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    device: str,
    threads: int | None,
) -> None:
    """Train the product of RECIPE (a file, or the name of a recipe that comes with qkd) into a run folder.

    KEY=VALUE changes single settings: `train.epochs=3 student.quantize=w4a4 seed=1`.
    """
    from qkd import recipe as recipes
    from qkd.produce import Machine, produce
    from qkd.progress import Reporter

    loaded = recipes.load(recipe, overrides)
    for warning in recipes.warnings(loaded):
        click.echo(f"warning: {warning}", err=True)
    machine = Machine(device, precision, threads)
    with Reporter(quiet=quiet) as reporter, tempfile.TemporaryDirectory() as scratch:
        if dry_run:
            out, max_steps = Path(scratch) / "dry", 2
            overrides = (*overrides, "pretrain.epochs=1")
            loaded = recipes.load(recipe, overrides)
        run = _run(recipe, loaded, out, resume)
        result = produce(loaded, run, machine, resume=resume, max_steps=max_steps, listen=reporter)
        if dry_run:
            from qkd.ship import ship

            result["export"] = ship(run)
    _print(result, as_json)


def _run(recipe: str, loaded: Any, out: Path | None, resume: bool) -> Any:
    from qkd import recipe as recipes
    from qkd.produce import latest, refuse_changed
    from qkd.run import ORIGINAL, Run

    name = Path(recipe).stem
    if resume:
        run = Run.open(out) if out else latest(Path("runs"), name)
        refuse_changed(run, loaded)
        return run
    run = Run.create(out or Path("runs") / name)
    run.write(ORIGINAL, recipes.text_of(recipe))
    return run


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    start = f"float start {result['float_top1']:.2f} %, " if result["float_top1"] is not None else ""
    before = f"{result['before_top1']:.2f} % before training, " if result["before_top1"] is not None else ""
    click.echo(f"{result['run']}: {result['method']}: {start}{before}{result['top1']:.2f} % on test")
    click.echo(f"next: qkd export {result['run']}")
