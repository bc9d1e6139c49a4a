"""How fast files are on onnxruntime: measured in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qkd.errors import ExportError, UsageError
from qkd.export.session import only_input, open_session, run

WARM_UP = 3
LEAST_ROUNDS = 5
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}


@dataclass(frozen=True)
class Row:
    """One file at one batch size and number of threads.

    p50_ms, p95_ms: time of one call, not of one image. speedup: median of the compared file over this one's, None
    without a compared file. top1: % of the labels, None without them. rounds: how many calls were timed.
    instructions: the best integer instructions of the processor; int8 is far slower where "vnni" is missing.
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
    labels: np.ndarray | None = None,
) -> list[Row]:
    """Rows for every file, ``against`` (the float file) last, at every number of threads and batch size.

    In each round every file runs once; rounds go on for ``seconds`` per file, or ``repeats`` times. Any ONNX file with
    one input can be timed; without ``images`` (N, C, H, W) it gets noise of its input's shape. With ``images`` and
    ``labels`` accuracy is added. Raises ExportError for a file that cannot run, UsageError for a setting below one.
    """
    _require_settings(batches, threads, seconds, repeats)
    paths = [Path(file) for file in [*files, *([] if against is None else [against])]]
    top1 = [_top1(path, images, labels) for path in paths]
    rows = []
    for count in threads:
        sessions = [open_session(path, threads=count) for path in paths]
        for batch in batches:
            feeds = [_feed(session, path, batch, images) for session, path in zip(sessions, paths, strict=True)]
            times = _in_turns(sessions, feeds, seconds, repeats)
            base = float(np.median(times[-1])) if against is not None else None
            rows += [_row(path, batch, count, times[i], base, top1[i]) for i, path in enumerate(paths)]
    return rows


def instructions() -> str:
    """The best integer dot product of this processor, as onnxruntime would use it, or its architecture."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return platform.machine()
    order = ("avx512_vnni", "avx_vnni", "avx512bw", "avx2", "i8mm", "asimddp", "asimd")
    return next((name for name in order if name in words), platform.machine())


def _in_turns(
    sessions: Sequence[onnxruntime.InferenceSession],
    feeds: Sequence[dict[str, np.ndarray]],
    seconds: float,
    repeats: int | None,
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
            start = time.perf_counter()
            sessions[which].run(None, feeds[which])
            times[which].append(time.perf_counter() - start)
        done += 1
    return times


def _row(path: Path, batch: int, threads: int, times: list[float], base: float | None, top1: float | None) -> Row:
    median = float(np.median(times))
    return Row(
        file=str(path),
        batch=batch,
        threads=threads,
        p50_ms=1e3 * median,
        p95_ms=1e3 * float(np.quantile(times, 0.95)),
        images_per_second=batch / median,
        bytes=path.stat().st_size,
        speedup=None if base is None else base / median,
        top1=top1,
        rounds=len(times),
        instructions=instructions(),
    )


def _feed(
    session: onnxruntime.InferenceSession, path: Path, batch: int, images: np.ndarray | None
) -> dict[str, np.ndarray]:
    name, wanted = only_input(session), session.get_inputs()[0]
    fixed = wanted.shape[0]
    if isinstance(fixed, int) and fixed != batch:
        raise ExportError(f"{path}: takes batches of {fixed} only, not of {batch}; ask for that batch size")
    if wanted.type not in TYPES:
        raise ExportError(f"{path}: its input is {wanted.type}; possible are {', '.join(TYPES)}")
    if images is not None:
        chosen = np.resize(images, (batch, *images.shape[1:])) if len(images) < batch else images[:batch]
        return {name: np.ascontiguousarray(chosen, dtype=TYPES[wanted.type])}
    if not all(isinstance(size, int) for size in wanted.shape[1:]):
        raise ExportError(f"{path}: takes images of {wanted.shape[1:]}; give images, their size is not in the file")
    noise = np.random.default_rng(0).normal(scale=1.0, size=(batch, *wanted.shape[1:]))
    return {name: (noise if wanted.type.startswith("tensor(float") else 64 * np.abs(noise)).astype(TYPES[wanted.type])}


def _top1(path: Path, images: np.ndarray | None, labels: np.ndarray | None) -> float | None:
    if images is None or labels is None:
        return None
    logits = run(open_session(path), images)
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
