"""Optional dependencies, each an extra of the same name (``pip install 'qkd[timm]'``), imported where they are used."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from qkd.errors import UsageError


def require_extra(package: str, setting: str = "", *, error: type[UsageError] = UsageError) -> Any:
    """Import an optional package and return it.

    Raises ``error`` naming ``setting``, which needs the package, and the extra that installs it, if it cannot be imported.
    """
    with importing_extra(package, setting, error=error):
        return importlib.import_module(package)


@contextlib.contextmanager
def importing_extra(package: str, setting: str = "", *, error: type[UsageError] = UsageError) -> Iterator[None]:
    """As `require_extra`, for a block that imports the package by way of another library."""
    try:
        yield
    except ImportError as failure:
        where = f"{setting}: " if setting else ""
        message = f"{where}{package} is not installed; pip install 'qkd[{package}]'"
        raise error(message, key="extra.not-installed") from failure
