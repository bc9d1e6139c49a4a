"""The folder for files that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/qkd``, by default ``~/.cache/qkd``; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())) / "qkd"
