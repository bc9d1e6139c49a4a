"""How fast files are on onnxruntime: measured in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from qkd.errors import ExportError, UsageError
from qkd.export.memory import peak_megabytes
from qkd.export.op_counts import convolutions
from qkd.export.openvino import OpenVino
from qkd.export.session import input_type, matching_input, only_input, open_session, run
from qkd.export.timing import Clock, Subject, time_over_openings
from qkd.storage.environment import instructions


class Given(NamedTuple):
    """Images (N, C, H, W) normalised, the same as uint8, and labels (N,); what there is of them."""

    images: np.ndarray | None
    raw: np.ndarray | None
    labels: np.ndarray | None


@dataclass(frozen=True)
class Row:
    """One file at one batch size and number of threads, in one runtime.

    p50_ms, p95_ms: time of one call, not of one image. speedup: median of the compared file over this one's, None
    without a compared file. top1: % of the labels, None without them. rounds: how many calls were timed.
    instructions: the best integer instructions of the processor; int8 is far slower where "vnni" is missing.
    load_ms: time to open the file. integer_convs of convs: convolutions that run as integer kernels. peak_mb: the most
    memory a process of its own needs for the file beyond onnxruntime itself, None where it was not asked for. agreement:
    for another runtime how often its top-1 is onnxruntime's, in %, None without images. beside: the file ``speedup`` is
    over, None without one.
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
    beside: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def bench(
    files: Sequence[str | Path],
    *,
    against: str | Path | Mapping[Path, Path] | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    repeats: int | None = None,
    images: np.ndarray | None = None,
    raw: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    own: Mapping[Path, tuple[np.ndarray, np.ndarray, np.ndarray]] = MappingProxyType({}),
    memory: bool = False,
    openvino: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Rows for every file, what they are compared with last, at every number of threads and batch size.

    ``against`` is the float file, or one for each file.

    In each round every file runs once; rounds go on for ``seconds`` per file, shared by three openings of which the one
    with the median counts, or ``repeats`` times. Any ONNX file with one input can be timed; without ``images`` (N, C, H, W)
    it gets noise of its input's shape. A file that takes raw images gets ``raw``, the same ones as uint8, in its layout;
    files in ``own`` get (images, raw, labels) of their own. With ``labels`` accuracy is added, with ``memory`` the peak,
    from a process for each file, with ``openvino`` rows of the same files there, taking part in the same rounds, behind
    onnxruntime's. ``clock`` may be ``time.process_time``, which does not count waiting for other programs but adds threads
    up. Raises ExportError for a file that cannot run, UsageError for a setting below one.
    """
    _require_settings(batches, threads, seconds, repeats)
    named = [Path(file) for file in files]
    beside = dict(against) if isinstance(against, Mapping) else dict.fromkeys(named, Path(against)) if against else {}
    last = dict.fromkeys(beside.values())
    paths = [*(path for path in named if path not in last), *last]
    data = [Given(*own.get(path, (images, raw, labels))) for path in paths]
    subjects = [_subject(path, given) for path, given in zip(paths, data, strict=True)]
    if openvino:
        subjects += [_elsewhere(path, given) for path, given in zip(paths, data, strict=True)]
    compared = [paths.index(beside.get(path, path)) if path in beside or path in last else None for path in paths]
    readers = [open_session(path, threads=1) for path in paths]
    rows = []
    for count in threads:
        for batch in batches:
            feeds = [_feed(reader, path, batch, of) for reader, path, of in zip(readers, paths, data, strict=True)]
            feeds *= len(subjects) // len(paths)
            times, loads = time_over_openings(subjects, count, feeds, seconds, repeats, clock)
            for i, subject in enumerate(subjects):
                other = compared[i % len(paths)]
                base = None if other is None else float(np.median(times[i - i % len(paths) + other]))
                asked = memory and subject.runtime == "onnxruntime"
                peak = peak_megabytes(subject.path, next(iter(feeds[i].values())), count) if asked else None
                row = _row(subject, batch, count, times[i], base, loads[i], peak)
                rows.append(dataclasses.replace(row, beside=None if other is None else str(paths[other])))
    return rows


def _subject(path: Path, given: Given) -> Subject:
    integers, convs = convolutions(path)
    return Subject(path, _top1(path, given), integers, convs)


def _elsewhere(path: Path, data: Given) -> Subject:
    """The file in OpenVINO; which of its kernels are integer is not known."""
    session, compiled = open_session(path), OpenVino(path, 1)
    given = None if data.images is None else matching_input(session, data.images, data.raw)
    if given is None:
        return Subject(path, None, 0, 0, "openvino")
    found = compiled.logits(only_input(session), given).argmax(1)
    agreement = float(100 * (found == run(session, given).argmax(1)).mean())
    top1 = None if data.labels is None else float(100 * (found == data.labels).mean())
    return Subject(path, top1, 0, 0, "openvino", agreement)


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


def _feed(session: onnxruntime.InferenceSession, path: Path, batch: int, data: Given) -> dict[str, np.ndarray]:
    name, wanted, kind = only_input(session, path), session.get_inputs()[0], input_type(session, path)
    fixed = wanted.shape[0]
    if isinstance(fixed, int) and fixed != batch:
        raise ExportError(f"{path}: takes batches of {fixed} only, not of {batch}; ask for that batch size")
    given = None if data.images is None else matching_input(session, data.images, data.raw)
    if given is not None:
        chosen = np.resize(given, (batch, *given.shape[1:])) if len(given) < batch else given[:batch]
        return {name: np.ascontiguousarray(chosen, dtype=kind)}
    if not all(isinstance(size, int) for size in wanted.shape[1:]):
        raise ExportError(f"{path}: takes images of {wanted.shape[1:]}; give images, their size is not in the file")
    noise = np.random.default_rng(0).normal(scale=1.0, size=(batch, *wanted.shape[1:]))
    return {name: (noise if np.issubdtype(kind, np.floating) else 64 * np.abs(noise).clip(0, 1)).astype(kind)}


def _top1(path: Path, data: Given) -> float | None:
    session = open_session(path)
    given = None if data.images is None else matching_input(session, data.images, data.raw)
    if given is None or data.labels is None:
        return None
    logits = run(session, given)
    return float(100 * (logits.argmax(1) == np.asarray(data.labels)).mean())


def _require_settings(batches: Sequence[int], threads: Sequence[int], seconds: float, repeats: int | None) -> None:
    for name, values in (
        ("batch size", batches),
        ("number of threads", threads),
        ("number of repeats", [repeats or 1]),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"{name} {list(values)}: give whole numbers from 1")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"seconds {seconds}: give a positive number")
