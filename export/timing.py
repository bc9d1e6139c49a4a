"""Interleaved timing of files over several openings, so that other load on the machine slows down all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qkd.export.contender import Contender

WARM_UP = 3
LEAST_ROUNDS = 5
OPENINGS = 3
"""How often files are opened anew where time is given: an unlucky placement in memory can slow one opening threefold."""
Clock = Callable[[], float]
"""Seconds since any moment."""
Feed = Mapping[str, np.ndarray]
"""The inputs of one call, by name."""


class Session(Protocol):
    """What runs a file: onnxruntime's sessions, and files opened in another runtime."""

    def run(self, outputs: None, feed: Any, /) -> Any: ...


class Timed(NamedTuple):
    """Seconds of each call of a file, and seconds of opening it."""

    calls: list[float]
    load: float

    @property
    def median(self) -> float:
        """Of the calls, in seconds."""
        return float(np.median(self.calls))


def time_over_openings(
    contenders: Sequence[Contender],
    threads: int,
    feeds: Sequence[Feed],
    seconds: float,
    repeats: int | None,
    clock: Clock,
) -> list[Timed]:
    """The times of every file, from that one of its openings whose median is the median.

    seconds: for each file, over all openings; or repeats: calls of each file, in one opening.
    """
    count = OPENINGS if repeats is None else 1
    trials: list[list[Timed]] = []
    for _ in range(count):
        opened = [_opened(contender, threads) for contender in contenders]
        calls = interleave([session for session, _ in opened], feeds, seconds / count, repeats, clock)
        trials.append([Timed(taken, load) for taken, (_, load) in zip(calls, opened, strict=True)])
    return [sorted(trial, key=lambda each: each.median)[count // 2] for trial in zip(*trials, strict=True)]


def _opened(contender: Contender, threads: int) -> tuple[Session, float]:
    """A file, opened, and the seconds that took."""
    start = time.perf_counter()
    session = contender.open(threads)
    return session, time.perf_counter() - start


def interleave(
    sessions: Sequence[Session],
    feeds: Sequence[Feed],
    seconds: float,
    repeats: int | None,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each call, a list for each session; each session runs once in a round, and each round begins one later.

    Rounds go on for ``seconds`` per session, or ``repeats`` times. ``clock`` measures the calls.
    """
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(WARM_UP):
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds * len(sessions)
    done = 0
    while done < (repeats or LEAST_ROUNDS) or (repeats is None and time.perf_counter() < end):
        for position in range(len(sessions)):
            which = (position + done) % len(sessions)
            start = clock()
            sessions[which].run(None, feeds[which])
            times[which].append(clock() - start)
        done += 1
    return times
