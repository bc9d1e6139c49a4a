"""Nothing is reported to anybody: onnxruntime's telemetry is off before it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

PROGRAM = """
import os, sys
import qkd, qkd.export
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


@pytest.mark.parametrize("asked", [None, "0"])
def test_onnxruntime_keeps_and_reports_nothing_unless_asked(file: Path, tmp_path: Path, asked: str | None) -> None:
    home = tmp_path / "home"
    home.mkdir()
    rest = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    words = {**rest, "HOME": str(home), "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    words |= {} if asked is None else {"ORT_DISABLE_TELEMETRY": asked}
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, env=words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("1" if asked is None else asked)
    if asked is None:
        assert not list(home.rglob("*onnxruntime*"))
