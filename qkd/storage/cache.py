"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/qkd``, by default ``~/.cache/qkd``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())) / "qkd"
