"""Shared by all tests: one thread, a cache of their own, tiny networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qkd  # noqa: F401  (before onnxruntime, whose telemetry it turns off)
from tests.support.refusals import refused  # noqa: F401  (a fixture)

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden losses instead of comparing")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    """No test reads or writes the user's cache of float starts, nor that of another run; workers of one run share one."""
    home = tmp_path_factory.getbasetemp()
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str((home.parent if hasattr(request.config, "workerinput") else home) / "cache"))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
