"""The command line in this process, and in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from qkd.cli.main import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def qkd(*words: str, cwd: Path) -> Done:
    """The command line, in this process: importing torch takes longer than most commands do."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            return Done(int(end.code or 0), out.getvalue(), err.getvalue())


def in_a_process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qkd", *words], cwd=cwd, capture_output=True, text=True, check=False)
