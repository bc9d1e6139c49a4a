"""The memory that a file needs, measured in a process of its own, since the peak of a process never falls.

Run as a program (``python -m qkd.export.memory FILE IMAGES.npy THREADS``), this module is that process: it prints the KiB.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from qkd.errors import ExportError
from qkd.storage.environment import peak_process_kib

KIB = 1024
"""In a MiB."""
WARM = 2
"""Calls in which onnxruntime takes all the memory it needs."""


def peak_megabytes(path: Path, images: np.ndarray, threads: int) -> float:
    """What opening a file and running it on a batch adds to the peak memory of a process that has loaded onnxruntime.

    In MiB. Raises ExportError where that process fails.
    """
    with tempfile.TemporaryDirectory(prefix="qkd-") as folder:
        batch = Path(folder) / "images.npy"
        np.save(batch, images)
        words = [sys.executable, "-m", __spec__.name, str(path), str(batch), str(threads)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise ExportError(f"{path}: its memory cannot be measured: {reason}", key="bench.memory")
    return float(done.stdout) / KIB


def _growth(path: str, images: np.ndarray, threads: int) -> float:
    """The KiB by which this process's peak grows when it opens a file and runs it."""
    import onnxruntime

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # importing takes more than it keeps; this resets the peak on Linux
    before = peak_process_kib()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(WARM):
        session.run(None, {session.get_inputs()[0].name: images})
    return peak_process_kib() - before


if __name__ == "__main__":
    sys.stdout.write(f"{_growth(sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]))}\n")
