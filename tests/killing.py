"""A process that trains and is killed, again and again: for tests, started as ``python -m tests.killing``.

    recipe folder instant...        an instant is `t0.8`, so many seconds after the start, or `w3`, inside a write

Two runs: ``folder/whole``, left alone, and ``folder/killed``, whose last attempt is left alone. Imports happen once; every
attempt is a fork, so that it costs what training costs and nothing else. Prints how each attempt ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

import qkd.produce  # noqa: F401  (before the first fork)
from qkd.cli import main


def die_inside_write(number: int) -> None:
    """SIGKILL at the so many-th call of fsync: odd ones lie before a rename, even ones behind it."""
    left, real = [number], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


def attempt(words: list[str], instant: str) -> int:
    """Train in a process of its own until it ends or dies. -> its exit status, negative for a signal"""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        if instant.startswith("w"):
            die_inside_write(int(instant[1:]))
        main(words)
    if instant.startswith("t"):
        time.sleep(float(instant[1:]))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(recipe: str, folder: Path, instants: list[str]) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{folder}-cache"  # so that the float network is trained too
    words = ["train", recipe, "--out", str(folder), "--threads", "1", "-q", "--save-every", "0"]
    for instant in [*instants, "end"]:
        resume = ["--resume"] if folder.is_dir() else []
        print(folder.name, instant, attempt([*words, *resume], instant), flush=True)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]) / "whole", [])
    train(sys.argv[1], Path(sys.argv[2]) / "killed", sys.argv[3:])
