"""Real disks: one that is full, one that may only be read. They are mounted for the test, where that is allowed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from qkd.storage import atomic
from qkd.storage.checkpoints import LAST, is_intact
from qkd.storage.run import Run
from tests.support.command_line import in_a_process, qkd
from tests.support.tiny_runs import TINY, losses

SMALL = "size=900k"  # a run of the tiny recipe takes 1.2 MB


def mount(folder: Path, options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount: {error.strerror}")
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own. Skips the test where this user may not mount one."""
    folder.mkdir()
    mount(folder, options)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights that were read map their file


TRAIN = ("train", "tiny.yaml", "--threads", "1", "--out")


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with mounted(tmp_path / "small", SMALL) as small:
        done = in_a_process(*TRAIN, "small/run", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "cannot write: No space left on device; what was there before is untouched" in error
        assert "Traceback" not in done.stderr
        run = Run(small / "run")
        assert run.checkpoints.load(LAST) is not None
        assert all(is_intact(path) for path in run.checkpoints.files(LAST))
        assert not list(run.folder.rglob(f"*{atomic.UNFINISHED}"))
        mount(small, f"remount,{SMALL.replace('900k', '8m')}")
        assert qkd(*TRAIN, "small/run", "--resume", cwd=tmp_path).returncode == 0
        assert qkd(*TRAIN, "whole", cwd=tmp_path).returncode == 0
        whole, found = Run(tmp_path / "whole"), run.load_product()
        assert losses(run) == losses(whole)
        assert all(torch.equal(tensor, found[name]) for name, tensor in whole.load_product().items())


def test_a_disk_that_may_only_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with mounted(tmp_path / "fixed", "ro,size=1m"):
        done = qkd(*TRAIN, "fixed/run", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.endswith("fixed/run: cannot make the run folder: Read-only file system")
