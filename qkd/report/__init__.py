"""Report: one self-contained HTML page about a run. It loads nothing, runs nothing, and leaves out what is not there."""

from __future__ import annotations

from pathlib import Path

from qkd.report.page import render
from qkd.report.run_data import RunData, read_run
from qkd.storage.artifacts import REPORT

__all__ = ["REPORT", "read_run", "write"]


def write(evidence: RunData) -> Path:
    """Write ``report.html`` into the folder of a run. -> its path. Raises RunError if it cannot be written."""
    return evidence.run.write_file(REPORT, render(evidence))
