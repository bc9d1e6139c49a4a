"""``qkd train``: train the student of a recipe into a run folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkd.cli.choices import ChoiceOf

if TYPE_CHECKING:
    from qkd.engine.device import Machine
    from qkd.storage.results import ExportReport, TrainResult, UnprovenExportReport

    Exported = ExportReport | UnprovenExportReport

DRY_STEPS = 2

machine_options = [
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; with 1, runs are bit-identical."),
]


def on_machine(function: Any) -> Any:
    """Adds the options that choose the device and the threads."""
    for option in machine_options:
        function = option(function)
    return function


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder. [default: runs/<recipe name>[-N]]")
@click.option("--resume", is_flag=True, help="Continue the newest run of this recipe, or the one of --out.")
@click.option("--precision", type=ChoiceOf("qkd.engine.device:PRECISIONS"), default="fp32", show_default=True)
@click.option(
    "--compile",
    "compile_",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Use torch.compile for each stage; auto: in runs long enough to gain from it; off: also without C kernels.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Minutes between checkpoints inside an epoch.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode images from files.  [default: one per processor, at most 8]",
)
@click.option(
    "--logger",
    "loggers",
    type=ChoiceOf("qkd.engine.loggers:LOGGERS"),
    multiple=True,
    help="Also log the metrics of every epoch with this tool, if it is installed; repeatable.",
)
@click.option("--tensorboard", is_flag=True, help="Short for --logger tensorboard.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after this many batches.")
@click.option(
    "--dry-run", is_flag=True, help="Run every part once: build, train two batches, export, verify. Nothing is kept."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings only, no progress.")
@on_machine
def train(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    max_steps: int | None,
    as_json: bool,
    quiet: bool,
    **machine: Any,
) -> None:
    """Train the student of RECIPE (a file, or the name of a recipe that comes with qkd) into a run folder.

    KEY=VALUE overrides a setting: `train.epochs=3 student.quantize=w4a4 seed=1`. With several processes,
    `torchrun --nproc-per-node 2 -m qkd train RECIPE`, data.batch is the total over all of them.
    """
    from qkd import recipe as recipes
    from qkd.engine.device import Machine, is_first
    from qkd.errors import UsageError

    if dry_run and (out or resume):
        raise UsageError(
            "--dry-run keeps nothing: it has no use for --out and --resume", key="train.dry-run-with-a-folder"
        )
    loaded = recipes.load(recipe, overrides)
    first = is_first()
    for warning in recipes.warnings(loaded) if first else ():
        click.echo(f"warning: {warning}", err=True)
    machine["compile"] = machine.pop("compile_")
    machine["loggers"] += ("tensorboard",) if machine.pop("tensorboard") else ()
    where, quiet = Machine(**machine), quiet or not first
    if dry_run:
        result, exported = _dry_run(recipe, overrides, where, quiet=quiet)
    else:
        run = _run(recipe, loaded, out, resume) if first else None
        result, exported = _train(loaded, run, where, resume, max_steps, quiet=quiet), None
    if first:
        _print(recipe, result, exported, as_json=as_json)


def _dry_run(
    recipe: str, overrides: tuple[str, ...], machine: Machine, *, quiet: bool
) -> tuple[TrainResult, Exported | None]:
    """Train two batches in a folder that is removed again. -> the result and, in the first process, the export report"""
    from qkd import recipe as recipes
    from qkd.engine.device import is_first
    from qkd.pipeline.export import export_run

    with tempfile.TemporaryDirectory() as scratch:
        loaded = recipes.load(recipe, (*overrides, "pretrain.epochs=1"))
        run = _run(recipe, loaded, Path(scratch) / "dry", resume=False) if is_first() else None
        result = _train(loaded, run, machine, resume=False, max_steps=DRY_STEPS, quiet=quiet)
        return result, None if run is None else export_run(run)


def _train(recipe: Any, run: Any, machine: Machine, resume: bool, max_steps: int | None, *, quiet: bool) -> TrainResult:
    from qkd.cli.progress import Reporter
    from qkd.engine.signals import Interrupted
    from qkd.errors import UsageError
    from qkd.pipeline.train import train_recipe

    try:
        with Reporter(quiet=quiet) as reporter:
            return train_recipe(recipe, run, machine, resume=resume, max_steps=max_steps, listen=reporter)
    except Interrupted as interrupted:
        if run is not None:
            click.echo(f"{run.folder}: {interrupted.message}; go on with --out {run.folder} --resume", err=True)
        raise
    except UsageError:
        if run is not None and not resume:
            run.remove_untrained()
        raise


def _run(recipe: str, loaded: Any, out: Path | None, resume: bool) -> Any:
    from qkd import recipe as recipes
    from qkd.pipeline.resume import latest_run, refuse_changed, resumable_run
    from qkd.storage.artifacts import ORIGINAL_RECIPE, RECIPE
    from qkd.storage.run import Run

    if resume:
        run = resumable_run(out) if out else latest_run(Path("runs"), Path(recipe).stem)
        if (run.folder / RECIPE).is_file():
            refuse_changed(run, loaded)
            return run
    else:
        wanted = out or Path("runs") / Path(recipe).stem
        run = Run.create(wanted)
        if out and run.folder.name != out.name:
            click.echo(f"{out}: there is something in it already; this run is {run.folder}", err=True)
    run.write_file(ORIGINAL_RECIPE, recipes.text_of(recipe))
    run.write_file(RECIPE, recipes.dump(loaded))
    return run


def _print(recipe: str, result: TrainResult, exported: Exported | None, *, as_json: bool) -> None:
    """``exported``: the report of a dry run."""
    if as_json:
        dry = {} if exported is None else {"run": None, "export": exported.to_json()}
        click.echo(json.dumps({**result.to_json(), **dry}))
    elif exported is not None:
        images = f"{exported.images} test images"
        click.echo(f"{recipe}: trained {DRY_STEPS} batches, exported, verified on {images}; nothing is kept")
    else:
        _print_result(result)


def _print_result(result: TrainResult) -> None:
    from qkd.cli.output import print_wrapped
    from qkd.report.collaboration import sentences

    start = f"float start {result.float_top1:.2f} %, " if result.float_top1 is not None else ""
    before = f"{result.before_top1:.2f} % before training, " if result.before_top1 is not None else ""
    top1 = f"{result.top1:.2f} % on test" if result.top1 is not None else "not measured"
    click.echo(f"{result.run}: {result.method}: {start}{before}{top1}")
    if result.before_top1 is not None and result.top1 is not None and result.top1 < result.before_top1:
        click.echo("warning: it was better before training; lower train.rate or train for longer", err=True)
    for line in sentences(result):
        print_wrapped(line)
    click.echo(f"next: qkd export {result.run}")
