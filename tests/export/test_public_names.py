"""The package's names are imported when they are first used, each from its module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qkd.export

FOLDER = Path(qkd.export.__file__).parent


def test_every_public_name_is_there() -> None:
    for name in dir(qkd.export):
        assert getattr(qkd.export, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'emitt'"):
        _ = qkd.export.emitt  # type: ignore[attr-defined]


def test_no_module_hides_a_public_name() -> None:
    assert not {path.stem for path in FOLDER.glob("*.py")} & set(dir(qkd.export))


def test_targets_and_environment_need_no_heavy_library() -> None:
    code = (
        "import sys, qkd.export.targets, qkd.storage.environment; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
