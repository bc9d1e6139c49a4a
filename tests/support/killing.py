"""A process that trains and is killed, again and again: for tests, started as ``python -m tests.support.killing``.

    recipe folder instant...        an instant is `t0.8`, so many seconds after the start, or `w3`, inside a write
    recipe folder random 20         instants drawn over the whole run, until so many kills have hit

First ``folder/whole``, left alone; then ``folder/killed-0``, resumed after every kill until it ends, and, where kills are
still to come, ``folder/killed-1`` and so on. Imports happen once; every attempt is a fork, so that it costs what training
costs and nothing else. Prints how each attempt ended.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import qkd.pipeline.train  # noqa: F401  (before the first fork)
from qkd.cli.main import main

END = "end"
"""The instant of an attempt that is left alone."""


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


def train(recipe: str, folder: Path, instant: str) -> int:
    """One attempt at ``folder``, from where the one before left it. -> its exit status"""
    os.environ["XDG_CACHE_HOME"] = f"{folder}-cache"  # so that the float network is trained too
    words = ["train", recipe, "--out", str(folder), "--threads", "1", "-q", "--save-every", "0"]
    status = attempt([*words, *(["--resume"] if folder.is_dir() else [])], instant)
    print(folder.name, instant, status, flush=True)
    return status


def kill_at(recipe: str, folder: Path, instants: list[str]) -> None:
    """One run, killed at each of the instants in turn, then left to end."""
    for instant in [*instants, END]:
        train(recipe, folder / "killed-0", instant)


def kill_at_random(recipe: str, folder: Path, kills: int, seconds: float) -> None:
    """As many runs as so many kills take: an attempt that outlives its instant ends its run, and the next one begins."""
    draw, run = random.Random(0), 0
    while kills:
        writes = draw.random() < 0.5
        instant = f"w{draw.randint(1, 30)}" if writes else f"t{draw.uniform(0, seconds):.3f}"
        ended = train(recipe, folder / f"killed-{run}", instant) == 0
        run, kills = (run + 1, kills) if ended else (run, kills - 1)
    train(recipe, folder / f"killed-{run}", END)


if __name__ == "__main__":
    recipe, folder, instants = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    began = time.monotonic()
    train(recipe, folder / "whole", END)
    if instants[0] == "random":
        kill_at_random(recipe, folder, int(instants[1]), time.monotonic() - began)
    else:
        kill_at(recipe, folder, instants)
