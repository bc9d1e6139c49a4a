"""Report: one self-contained HTML page about a run. It loads nothing, runs nothing, and leaves out what is not there."""

from __future__ import annotations

from pathlib import Path

from qkd.report.evidence import gather
from qkd.report.page import render
from qkd.run import Run

REPORT = "report.html"

__all__ = ["REPORT", "write"]


def write(run: Run) -> Path:
    """Write ``report.html`` into a run folder. -> its path. Raises RunError if it cannot be written."""
    return run.write(REPORT, render(gather(run)))
