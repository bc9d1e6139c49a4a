"""Several ranks of one command, each a fork of this process, so that imports happen once: ``torchrun`` in small.

    python -m tests.support.pairing FOLDER train tiny.yaml ...

What each rank says on stderr is in ``FOLDER/rank-N.txt``. Prints the ranks' exit statuses.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RANKS = 2
ROOT = Path(__file__).parent.parent.parent


def ranks(work: Callable[[], object], folder: Path) -> list[int]:
    """Do it in so many processes that can find each other. -> their exit statuses, negative for a signal"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            sys.stderr = (folder / f"rank-{rank}.txt").open("w", buffering=1)
            work()
            sys.exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def paired(folder: Path, *words: str, script: str = "") -> tuple[list[int], list[str]]:
    """A command, or a script of its own that calls `ranks`, in two ranks. -> what `ranks` gives, and what each said"""
    line = (
        [sys.executable, "-c", script]
        if script
        else [sys.executable, "-m", "tests.support.pairing", str(folder), *words]
    )
    place = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=place, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()], [
        (folder / f"rank-{rank}.txt").read_text() for rank in range(RANKS)
    ]


if __name__ == "__main__":
    import torch

    import qkd.pipeline.train  # noqa: F401  (before the fork)
    from qkd.cli.main import main

    torch.set_num_threads(1)
    print(*ranks(lambda: main(sys.argv[2:]), Path(sys.argv[1])))
