"""Interrupt: a signal asks for the end; training ends where its state can be kept."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a person, and a cluster that wants its machine back


class Interrupted(KeyboardInterrupt):
    """Training was asked to end and has kept its state: ``message`` says at which step."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InterruptHandler:
    """While it is entered, the first signal only raises ``asked``; a second one interrupts at once.

    It also keeps the time: ``due`` says whether ``every`` seconds have passed since the last ``kept()``.
    """

    def __init__(self, every: float) -> None:
        self.every, self.asked, self.since = every, False, time.monotonic()
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self.before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @property
    def due(self) -> bool:
        return time.monotonic() - self.since >= self.every

    def kept(self) -> None:
        self.since = time.monotonic()
