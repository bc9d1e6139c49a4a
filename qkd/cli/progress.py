"""Shows the progress of training on stderr: bars on a terminal, lines elsewhere. Results go to stdout."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """A listener of training that prints its events; with ``quiet`` only warnings.

    Every event needs an entry in ``LINES``, except ``step``, which moves the bars.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Reporter:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        if self.quiet and event not in WARNINGS:
            return
        if event == "step":
            self._advance(values)
        else:
            line = LINES[event](values)
            self.bars.print(line) if not self.bars.disable else self.console.print(line)

    def _advance(self, values: Mapping[str, Any]) -> None:
        phase = values["phase"]
        if phase not in self.tasks:
            self.tasks[phase] = self.bars.add_task(phase, total=1.0)
        self.bars.update(
            self.tasks[phase],
            completed=values["done"],
            description=f"{phase}, epoch {values['epoch'] + 1}/{values['epochs']}",
        )


def _epoch(values: Mapping[str, Any]) -> str:
    losses = "  ".join(
        f"{name.removeprefix('train/loss/')} {value:.3g}"
        for name, value in values.items()
        if name.startswith("train/loss/")
    )
    head = f"{values['phase']} {values['epoch']:>3}/{values['epochs']}"
    return f"{head}  val {values['val/top1']:6.2f} %  {values['images_per_second']:.0f} images/s  {losses}"


def _resumed(values: Mapping[str, Any]) -> str:
    line = f"resumed after step {values['steps']}"
    changed = "; ".join(values.get("changed", ()))
    return (
        f"{line}\nwarning: the result will differ from that of a run without interruption: {changed}"
        if changed
        else line
    )


WARNINGS = ("foreseen", "alarms")  # events that are printed with ``quiet`` too
LINES = {
    "epoch": _epoch,
    "cached": lambda v: f"{v['part']}: float {v['build']} taken from the cache",
    "pretrain": lambda v: f"{v['part']}: training float {v['build']} for {v['epochs']} epochs (kept for later runs)",
    "finished": lambda v: f"{v['run']}: finished already; nothing to resume",
    "resumed": _resumed,
    "ranks": lambda v: f"{v['ranks']} ranks: batches of {v['batch']} in all, {v['each']} each, rate {v['rate']:g}",
    "compiling": lambda v: f"compiling {v['stages']} stages; the first steps take longer",
    "foreseen": lambda v: "\n".join(f"warning: {line}" for line in v["lines"]),
    "deltas": lambda v: f"{v['part']}: delta of EWGS from the Hessian, {v['least']:.2g} to {v['most']:.2g}",
    "lowered": lambda v: f"fewer bits from epoch {v['epoch'] + 1} on",
    "alarms": lambda v: "\n".join(f"warning: quantizer {line} (after epoch {v['epoch']})" for line in v["lines"]),
    "eager": lambda v: f"not compiled: {v['why']}",
    "before": lambda v: f"calibrated: {v['top1']:.2f} % on test before training",
}
