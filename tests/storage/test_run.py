"""Run folders, checkpoints and locks: what is refused, and by which error; facts of the machine without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qkd.errors import RunError
from qkd.storage.atomic import lock_folder, write_atomic
from qkd.storage.checkpoints import LAST
from qkd.storage.environment import peak_memory, peak_process_kib
from qkd.storage.run import Run
from tests.support.refusals import Refused


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(RunError, "run.not-a-run-folder"):
        Run.open(tmp_path / "nowhere")
    with refused(RunError, "run.not-a-run-folder"):
        Run.open(tmp_path)


def test_missing_and_damaged_files_of_a_run_are_refused(tmp_path: Path, refused: Refused) -> None:
    run = Run.create(tmp_path / "run")
    assert run.result() == {"finished": False}
    with refused(RunError, "run.missing-file"):
        run.read_json("bench.json")
    with refused(RunError, "run.not-finished"):
        run.load_product()
    run.write_file("result.json", "[1]")
    with refused(RunError, "run.damaged-file"):
        run.result()
    run.write_file("product.safetensors", b"\x00")
    with pytest.raises(RunError) as error:
        run.load_product()  # the rest of the message is that of safetensors
    assert error.value.key == "run.damaged-file"


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("no folder")
    with refused(RunError, "run.cannot-make-folder"):
        Run.create(tmp_path / "file" / "run")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(RunError, "file.cannot-write"):
        write_atomic(tmp_path / "nowhere" / "x", lambda file: file.write(b""))
    run = Run.create(tmp_path / "run")
    (run.folder / "metrics.jsonl").mkdir()
    with refused(RunError, "file.cannot-write"):
        run.append_metrics({})


def test_a_run_without_an_intact_checkpoint_is_refused(tmp_path: Path, refused: Refused) -> None:
    run = Run.create(tmp_path / "run")
    name = f"last-000000008-whole-{'0' * 32}.pt"
    (run.checkpoints.folder / name).write_bytes(b"damaged")
    with refused(RunError, "checkpoint.all-damaged"):
        run.checkpoints.load(LAST)


def test_a_folder_is_locked_once(tmp_path: Path, refused: Refused) -> None:
    with lock_folder(tmp_path), refused(RunError, "run.locked"), lock_folder(tmp_path):
        pass


def test_facts_of_the_machine_need_no_torch() -> None:
    program = (
        "import sys, qkd.storage.environment as e; e.processor(), e.instructions(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_peak_memory_is_that_of_the_process() -> None:
    assert 0 < peak_process_kib() <= 1024 * (peak_memory(torch.device("cpu")) + 0.1)
