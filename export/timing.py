"""Files timed in turns, over several openings; what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qkd.export.openvino import OpenVino
from qkd.export.session import open_session

WARM_UP = 3
LEAST_ROUNDS = 5
OPENINGS = 3
"""How often files are opened anew where time is given: where memory happens to lie can slow one opening down threefold."""
Clock = Callable[[], float]
"""Seconds from any beginning."""


class Session(Protocol):
    """What runs a file: onnxruntime's sessions, and `OpenVino`."""

    def run(self, outputs: None, feed: Any, /) -> Any: ...


@dataclass(frozen=True)
class Subject:
    """A file that is timed, and what is the same at every batch size and number of threads."""

    path: Path
    top1: float | None
    integer_convs: int
    convs: int
    runtime: str = "onnxruntime"
    agreement: float | None = None


def time_over_openings(
    subjects: Sequence[Subject],
    threads: int,
    feeds: Sequence[dict[str, np.ndarray]],
    seconds: float,
    repeats: int | None,
    clock: Clock,
) -> tuple[list[list[float]], list[float]]:
    """Seconds of each call and of opening, for every file those of the opening whose median is the median."""
    count = OPENINGS if repeats is None else 1
    trials: list[list[tuple[list[float], float]]] = []
    for _ in range(count):
        opened = [_opened(subject, threads) for subject in subjects]
        times = interleave([session for session, _ in opened], feeds, seconds / count, repeats, clock)
        trials.append([(taken, load) for taken, (_, load) in zip(times, opened, strict=True)])
    chosen = [
        sorted(trial, key=lambda each: float(np.median(each[0])))[count // 2] for trial in zip(*trials, strict=True)
    ]
    return [taken for taken, _ in chosen], [load for _, load in chosen]


def _opened(subject: Subject, threads: int) -> tuple[Session, float]:
    """What runs the file, and the seconds it took to open."""
    start = time.perf_counter()
    elsewhere = subject.runtime != "onnxruntime"
    session = OpenVino(subject.path, threads) if elsewhere else open_session(subject.path, threads=threads)
    return session, time.perf_counter() - start


def interleave(
    sessions: Sequence[Session],
    feeds: Sequence[dict[str, np.ndarray]],
    seconds: float,
    repeats: int | None,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each call, a list for each session; the order turns by one in every round."""
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(WARM_UP):
            session.run(None, feed)
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds * len(sessions)
    done = 0
    while done < (repeats or LEAST_ROUNDS) or (repeats is None and time.perf_counter() < end):
        for turn in range(len(sessions)):
            which = (turn + done) % len(sessions)
            start = clock()
            sessions[which].run(None, feeds[which])
            times[which].append(clock() - start)
        done += 1
    return times
