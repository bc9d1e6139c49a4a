"""Tracking: the numbers of every epoch for tools that draw them, beside ``metrics.jsonl``."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd.errors import UsageError

if TYPE_CHECKING:
    from qkd.engine.train import Listener

Write = Callable[[dict[str, float], int], None]  # (curves, step)


@contextmanager
def with_loggers(names: Sequence[str], folder: Path, facts: Mapping[str, Any], listen: Listener) -> Iterator[Listener]:
    """A listener that also tells every named tool, which are closed when the block ends. ``facts``: what the run is.

    Raises UsageError for a tool that is not installed.
    """
    with ExitStack() as opened:
        writers = [opened.enter_context(LOGGERS[name](folder, facts)) for name in dict.fromkeys(names)]

        def heard(event: str, values: Mapping[str, Any]) -> None:
            listen(event, values)
            for write in writers if event == "epoch" else ():
                write(curves(values), values["steps"])

        yield heard


@contextmanager
def tensorboard(folder: Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Event files in ``folder/tensorboard``."""
    from lightning_fabric.loggers import TensorBoardLogger

    with _extra("tensorboard"):
        logger = TensorBoardLogger(folder, name="", version="tensorboard")
        logger.experiment  # noqa: B018  (opens the file, which needs the package)
    with _fabric(logger) as write:
        yield write


@contextmanager
def csv(folder: Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    """One table, ``folder/csv/metrics.csv``; each time a run is resumed another, in ``csv-2``, ``csv-3``."""
    from lightning_fabric.loggers import CSVLogger

    free = next(name for n in itertools.count(1) if not (folder / (name := f"csv-{n}" if n > 1 else "csv")).exists())
    with _fabric(CSVLogger(folder, name="", version=free)) as write:
        yield write


@contextmanager
def wandb(folder: Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    """A run of Weights & Biases in ``folder/wandb``; nothing is sent (``wandb sync`` does) unless WANDB_MODE says so."""
    with _extra("wandb"):
        library: Any = importlib.import_module("wandb")
    mode = os.environ.get("WANDB_MODE", "offline")
    run = library.init(project="qkd", name=folder.name, dir=str(folder), config=dict(facts), mode=mode)
    try:
        yield lambda curves, step: run.log(curves, step=step)
    finally:
        run.finish()


@contextmanager
def mlflow(folder: Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    """A run of MLflow at MLFLOW_TRACKING_URI, or in ``folder/mlruns``."""
    with _extra("mlflow"):
        library: Any = importlib.import_module("mlflow")
    library.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri())
    library.set_experiment("qkd")
    library.start_run(run_name=folder.name)
    library.log_params({name: value for name, value in facts.items() if not isinstance(value, Mapping | list)})
    try:
        yield lambda curves, step: library.log_metrics(curves, step=step)
    finally:
        library.end_run()


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "tensorboard": tensorboard,
    "csv": csv,
    "wandb": wandb,
    "mlflow": mlflow,
}


@contextmanager
def _fabric(logger: Any) -> Iterator[Write]:
    def write(curves: dict[str, float], step: int) -> None:
        logger.log_metrics(curves, step=step)
        logger.save()

    try:
        yield write
    finally:
        logger.finalize("success")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"--logger {name}: it is not installed; pip install 'qkd[{name}]'") from error


def curves(values: Mapping[str, Any]) -> dict[str, float]:
    """What of a line of metrics can be a curve, under the phase's name; counters are none."""
    skipped = ("epoch", "epochs", "steps")
    curves = {name: value for name, value in values.items() if isinstance(value, int | float) and name not in skipped}
    return {f"{values['phase']}/{name}": float(value) for name, value in curves.items()}
