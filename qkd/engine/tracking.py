"""Tracking: the numbers of every epoch for tools that draw them, beside ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkd.engine.train import Listener
from qkd.errors import UsageError


def tensorboard(folder: Path, listen: Listener) -> Listener:
    """A listener that also writes event files into ``folder/tensorboard``. Raises UsageError if TensorBoard is missing."""
    from lightning_fabric.loggers import TensorBoardLogger

    try:
        logger = TensorBoardLogger(folder, name="", version="tensorboard")
        logger.experiment  # noqa: B018  (opens the file, which needs the package)
    except ImportError as error:
        raise UsageError("--tensorboard: it is not installed; pip install 'qkd[tensorboard]'") from error

    def heard(event: str, values: Mapping[str, Any]) -> None:
        listen(event, values)
        if event == "epoch":
            logger.log_metrics(numbers(values), step=values["steps"])
            logger.save()

    return heard


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What of a line of metrics can be a curve, under the phase's name; counters are none."""
    skipped = ("epoch", "epochs", "steps")
    curves = {name: value for name, value in values.items() if isinstance(value, int | float) and name not in skipped}
    return {f"{values['phase']}/{name}": float(value) for name, value in curves.items()}
