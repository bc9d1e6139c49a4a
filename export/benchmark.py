"""Benchmarks of files: time of a call by interleaved timing, size, accuracy, memory, and what runs in integers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkd.errors import UsageError
from qkd.export.contender import Contender
from qkd.export.memory import peak_megabytes
from qkd.export.op_counts import convolutions
from qkd.export.session import only_input, open_session, run
from qkd.export.timing import Clock, Timed, time_over_openings
from qkd.storage.environment import instructions
from qkd.storage.results import BenchRow
from qkd.tasks.classification import top1


def bench(
    contenders: Sequence[Contender],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    repeats: int | None = None,
    memory: bool = False,
    clock: Clock = time.perf_counter,
) -> list[BenchRow]:
    """A row for every contender, at every number of threads and batch size.

    In each round every file runs once; rounds go on for ``seconds`` per file, shared by three openings of which the one
    with the median counts, or ``repeats`` times. Any ONNX file with one input can be timed. With ``memory`` the peak is
    added, from a process for each file. ``clock`` may be ``time.process_time``, which does not count waiting for other
    programs but adds threads up. Raises ExportError for a file that cannot run, UsageError for a setting below one.
    """
    _require_settings(batches, threads, seconds, repeats)
    facts = [_facts(each) for each in contenders]
    readers = {each.path: open_session(each.path, threads=1) for each in contenders}
    rows = []
    for count in threads:
        for batch in batches:
            feeds = [each.feed(readers[each.path], batch) for each in contenders]
            times = time_over_openings(contenders, count, feeds, seconds, repeats, clock)
            medians = {(each.path, each.where): timed.median for each, timed in zip(contenders, times, strict=True)}
            for each, fact, timed, feed in zip(contenders, facts, times, feeds, strict=True):
                base = None if each.baseline is None else medians[each.baseline, each.where]
                measured = memory and each.runtime is None
                peak = peak_megabytes(each.path, next(iter(feed.values())), count) if measured else None
                rows.append(_row(each, fact, batch, count, timed, base, peak))
    return rows


class _Facts(NamedTuple):
    """What is the same for a file at every batch size and number of threads."""

    top1: float | None
    integer_convs: int
    convs: int
    agreement: float | None = None


def _facts(contender: Contender) -> _Facts:
    integers, convs = convolutions(contender.path) if contender.runtime is None else (0, 0)
    session, labels = open_session(contender.path), contender.data.labels
    images = contender.inputs(session)
    if images is None:
        return _Facts(None, integers, convs)
    if contender.runtime is None:
        return _Facts(None if labels is None else top1(run(session, images), labels), integers, convs)
    found = contender.runtime.open(contender.path, 1).logits(only_input(session), images)
    agreement = top1(found, run(session, images).argmax(1))
    return _Facts(None if labels is None else top1(found, labels), integers, convs, agreement)


def _row(
    contender: Contender,
    facts: _Facts,
    batch: int,
    threads: int,
    timed: Timed,
    base: float | None,
    peak: float | None,
) -> BenchRow:
    return BenchRow(
        file=str(contender.path),
        batch=batch,
        threads=threads,
        p50_ms=1e3 * timed.median,
        p95_ms=1e3 * float(np.quantile(timed.calls, 0.95)),
        images_per_second=batch / timed.median,
        bytes=contender.path.stat().st_size,
        speedup=None if base is None else base / timed.median,
        top1=facts.top1,
        rounds=len(timed.calls),
        instructions=instructions(),
        load_ms=1e3 * timed.load,
        integer_convs=facts.integer_convs,
        convs=facts.convs,
        peak_mb=peak,
        runtime=contender.where,
        agreement=facts.agreement,
        beside=None if contender.baseline is None else str(contender.baseline),
    )


def _require_settings(batches: Sequence[int], threads: Sequence[int], seconds: float, repeats: int | None) -> None:
    for name, values in (
        ("batch size", batches),
        ("number of threads", threads),
        ("number of repeats", [repeats or 1]),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"{name} {list(values)}: give whole numbers from 1", key="bench.setting")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"seconds {seconds}: give a positive number", key="bench.seconds")
