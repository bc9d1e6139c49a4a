"""How fast files are on onnxruntime: measured in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from qkd.errors import ExportError, UsageError
from qkd.export.census import convolutions
from qkd.export.memory import peak_megabytes
from qkd.export.openvino import OpenVino
from qkd.export.session import input_type, instructions, only_input, open_session, run, suited

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


@dataclass(frozen=True)
class Row:
    """One file at one batch size and number of threads, in one runtime.

    p50_ms, p95_ms: time of one call, not of one image. speedup: median of the compared file over this one's, None
    without a compared file. top1: % of the labels, None without them. rounds: how many calls were timed.
    instructions: the best integer instructions of the processor; int8 is far slower where "vnni" is missing.
    load_ms: time to open the file. integer_convs of convs: convolutions that run as integer kernels. peak_mb: the most
    memory a process of its own needs for the file beyond onnxruntime itself, None where it was not asked for. agreement:
    for another runtime how often its top-1 is onnxruntime's, in %, None without images.
    """

    file: str
    batch: int
    threads: int
    p50_ms: float
    p95_ms: float
    images_per_second: float
    bytes: int
    speedup: float | None
    top1: float | None
    rounds: int
    instructions: str
    load_ms: float
    integer_convs: int
    convs: int
    peak_mb: float | None
    runtime: str = "onnxruntime"
    agreement: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def bench(
    files: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    repeats: int | None = None,
    images: np.ndarray | None = None,
    raw: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    memory: bool = False,
    openvino: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Rows for every file, ``against`` (the float file) last, at every number of threads and batch size.

    In each round every file runs once; rounds go on for ``seconds`` per file, shared by three openings of which the one
    with the median counts, or ``repeats`` times. Any ONNX file with
    one input can be timed; without ``images`` (N, C, H, W) it gets noise of its input's shape. A file that takes raw
    images gets ``raw``, the same ones as uint8, in its layout. With ``labels`` accuracy is added, with ``memory`` the
    peak, from a process for each file, with ``openvino`` rows of the same files there, taking part in the same rounds,
    behind onnxruntime's. ``clock`` may be ``time.process_time``, which does not count waiting for other programs but adds
    threads up. Raises ExportError for a file that cannot run, UsageError for a setting below one.
    """
    _require_settings(batches, threads, seconds, repeats)
    paths = [Path(file) for file in [*files, *([] if against is None else [against])]]
    subjects = [_subject(path, images, raw, labels) for path in paths]
    if openvino:
        subjects += [_elsewhere(path, images, raw, labels) for path in paths]
    readers = [open_session(path, threads=1) for path in paths]
    rows = []
    for count in threads:
        for batch in batches:
            feeds = [_feed(reader, path, batch, images, raw) for reader, path in zip(readers, paths, strict=True)]
            feeds *= len(subjects) // len(paths)
            times, loads = _over_openings(subjects, count, feeds, seconds, repeats, clock)
            for i, subject in enumerate(subjects):
                last = times[i - i % len(paths) + len(paths) - 1]
                base = float(np.median(last)) if against is not None else None
                asked = memory and subject.runtime == "onnxruntime"
                peak = peak_megabytes(subject.path, next(iter(feeds[i].values())), count) if asked else None
                rows.append(_row(subject, batch, count, times[i], base, loads[i], peak))
    return rows


def _over_openings(
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
        times = _in_turns([session for session, _ in opened], feeds, seconds / count, repeats, clock)
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


def _subject(path: Path, images: np.ndarray | None, raw: np.ndarray | None, labels: np.ndarray | None) -> Subject:
    integers, convs = convolutions(path)
    return Subject(path, _top1(path, images, raw, labels), integers, convs)


def _elsewhere(path: Path, images: np.ndarray | None, raw: np.ndarray | None, labels: np.ndarray | None) -> Subject:
    """The file in OpenVINO; which of its kernels are integer is not known."""
    session, compiled = open_session(path), OpenVino(path, 1)
    given = None if images is None else suited(session, images, raw)
    if given is None:
        return Subject(path, None, 0, 0, "openvino")
    found = compiled.logits(only_input(session), given).argmax(1)
    agreement = float(100 * (found == run(session, given).argmax(1)).mean())
    top1 = None if labels is None else float(100 * (found == labels).mean())
    return Subject(path, top1, 0, 0, "openvino", agreement)


def _in_turns(
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


def _row(
    subject: Subject,
    batch: int,
    threads: int,
    times: list[float],
    base: float | None,
    load: float,
    peak: float | None,
) -> Row:
    median = float(np.median(times))
    return Row(
        file=str(subject.path),
        batch=batch,
        threads=threads,
        p50_ms=1e3 * median,
        p95_ms=1e3 * float(np.quantile(times, 0.95)),
        images_per_second=batch / median,
        bytes=subject.path.stat().st_size,
        speedup=None if base is None else base / median,
        top1=subject.top1,
        rounds=len(times),
        instructions=instructions(),
        load_ms=1e3 * load,
        integer_convs=subject.integer_convs,
        convs=subject.convs,
        peak_mb=peak,
        runtime=subject.runtime,
        agreement=subject.agreement,
    )


def _feed(
    session: onnxruntime.InferenceSession, path: Path, batch: int, images: np.ndarray | None, raw: np.ndarray | None
) -> dict[str, np.ndarray]:
    name, wanted, kind = only_input(session, path), session.get_inputs()[0], input_type(session, path)
    fixed = wanted.shape[0]
    if isinstance(fixed, int) and fixed != batch:
        raise ExportError(f"{path}: takes batches of {fixed} only, not of {batch}; ask for that batch size")
    given = None if images is None else suited(session, images, raw)
    if given is not None:
        chosen = np.resize(given, (batch, *given.shape[1:])) if len(given) < batch else given[:batch]
        return {name: np.ascontiguousarray(chosen, dtype=kind)}
    if not all(isinstance(size, int) for size in wanted.shape[1:]):
        raise ExportError(f"{path}: takes images of {wanted.shape[1:]}; give images, their size is not in the file")
    noise = np.random.default_rng(0).normal(scale=1.0, size=(batch, *wanted.shape[1:]))
    return {name: (noise if np.issubdtype(kind, np.floating) else 64 * np.abs(noise).clip(0, 1)).astype(kind)}


def _top1(path: Path, images: np.ndarray | None, raw: np.ndarray | None, labels: np.ndarray | None) -> float | None:
    session = open_session(path)
    given = None if images is None else suited(session, images, raw)
    if given is None or labels is None:
        return None
    logits = run(session, given)
    return float(100 * (logits.argmax(1) == np.asarray(labels)).mean())


def _require_settings(batches: Sequence[int], threads: Sequence[int], seconds: float, repeats: int | None) -> None:
    for name, values in (
        ("batch size", batches),
        ("number of threads", threads),
        ("number of repeats", [repeats or 1]),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"{name} {list(values)}: give whole numbers from 1")
    if not seconds > 0:
        raise UsageError(f"seconds {seconds}: give a positive number")
