"""The report of a run: one HTML page that loads nothing and runs no scripts. Sections without data are left out."""

from __future__ import annotations

from pathlib import Path

from qkd.report.page import render
from qkd.report.run_data import RunData, read_run
from qkd.storage.artifacts import REPORT

__all__ = ["REPORT", "read_run", "write"]


def write(run_data: RunData) -> Path:
    """Write ``report.html`` into the folder of a run. -> its path. Raises RunError if it cannot be written."""
    return run_data.run.write_file(REPORT, render(run_data))
