"""The memory a file needs: measured in a process of its own, since a process never gives its peak back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from qkd.errors import ExportError

KILOBYTES = 1024
"""In a megabyte, as the operating system counts them."""
PROGRAM = """
import sys
import numpy as np, onnxruntime
from qkd.storage.environment import peak_process_kib
path, images, threads = sys.argv[1:]
given = np.load(images)
try:  # importing takes more than it keeps; forget that peak
    open("/proc/self/clear_refs", "w").write("5")
except OSError:
    pass
before = peak_process_kib()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = int(threads), 4
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
for _ in range(2):
    session.run(None, {session.get_inputs()[0].name: given})
print(peak_process_kib() - before)
"""


def peak_megabytes(path: Path, images: np.ndarray, threads: int) -> float:
    """What opening a file and running it on a batch adds to the peak memory of a process that has loaded onnxruntime.

    Raises ExportError where that process fails.
    """
    with tempfile.TemporaryDirectory(prefix="qkd-") as folder:
        given = Path(folder) / "images.npy"
        np.save(given, images)
        words = [sys.executable, "-c", PROGRAM, str(path), str(given), str(threads)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # finds what is imported here
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{path}: its memory cannot be measured: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return float(done.stdout) / KILOBYTES
