"""Timing by turns: what is compared runs in one process, one step of each after the other, so that a busy machine slows all.

On the CPU time is the process' own (one thread), so that waiting for other programs does not count; on a GPU it is the
clock's, around a synchronized step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Work = Callable[[], object]


def medians(works: Mapping[str, Work], *, rounds: int, warm: int, device: str = "cpu") -> dict[str, float]:
    """Milliseconds of one call of each, the median over rounds; each round begins with another one."""
    names = list(works)
    for name in names:
        for _ in range(warm):
            works[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(_milliseconds(works[name], device))
    return {name: statistics.median(times) for name, times in found.items()}


def _milliseconds(work: Work, device: str) -> float:
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def ratios(times: Mapping[str, float], base: str, *, instead: Mapping[str, str] | None = None) -> dict[str, float]:
    """Each time over that of ``base``, or of what ``instead`` names for it."""
    return {name: time / times[(instead or {}).get(name, base)] for name, time in times.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)])


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "threads": str(torch.get_num_threads())}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all timings share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rounds, small batches: a look, no measurement")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser


def write(path: Path | None, figures: Mapping[str, object], device: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(device), **figures}, indent=1) + "\n")
