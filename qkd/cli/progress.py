"""Shows the progress of training on stderr: bars on a terminal, lines elsewhere. Results go to stdout."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from qkd.engine.events import Event, StepTaken


class Reporter:
    """A listener of training that prints its events; with ``quiet`` only warnings."""

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

    def __call__(self, event: Event) -> None:
        if self.quiet and not event.is_warning:
            return
        if isinstance(event, StepTaken):
            self._advance(event)
        else:
            self.bars.print(str(event)) if not self.bars.disable else self.console.print(str(event))

    def _advance(self, step: StepTaken) -> None:
        if step.phase not in self.tasks:
            self.tasks[step.phase] = self.bars.add_task(step.phase, total=1.0)
        self.bars.update(self.tasks[step.phase], completed=step.progress, description=str(step))
