"""Code of the user's own, named in a recipe as ``./file.py:Name``: a network or a method."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from qkd.errors import UsageError, nearest
from qkd.options import suggestion


def is_user_code(name: str) -> bool:
    """Whether a name stands for code in a file: ``./file.py:Name``."""
    return name.partition(".py:")[1] != "" or name.endswith(".py")


def look_up(name: str, known: Mapping[str, Any], *, what: str, error: type[UsageError] = UsageError) -> Any:
    """The entry of ``known`` of that name, or the thing in a file. Raises ``error`` when there is none."""
    if is_user_code(name):
        return load_user_code(name, error=error)
    if name not in known:
        raise error(f"no {what} {name!r}{suggestion(name, known)}")
    return known[name]


def load_user_code(name: str, *, error: type[UsageError] = UsageError) -> Any:
    """The thing called Name in the Python file, for ``file.py:Name``; the file is executed once per content.

    Raises ``error`` for a missing file, a file that fails on import, and a missing name.
    """
    path, name = _parts(name, error)
    module = _module(path, error)
    if not hasattr(module, name):
        things = {word: value for word, value in vars(module).items() if callable(value) and not word.startswith("_")}
        defined = [word for word, value in things.items() if getattr(value, "__module__", None) == module.__name__]
        known = f"; it has: {', '.join(defined)}" if defined else ""
        raise error(f"{path}: no {name!r} in it{nearest(name, things)}{known}")
    return getattr(module, name)


def _parts(name: str, error: type[UsageError]) -> tuple[Path, str]:
    file, _, wanted = name.rpartition(":")
    if not file.endswith(".py") or not wanted:
        raise error(f"{name}: which name of the file? write {name.rstrip(':')}:Name")
    path = Path(file)
    if not path.is_file():
        raise error(f"{file}: no such file (tried {path.resolve()})")
    return path, wanted


def _module(path: Path, error: type[UsageError]) -> ModuleType:
    content = hashlib.sha256(f"{path.resolve()}\n".encode() + path.read_bytes()).hexdigest()[:16]
    name = f"qkd_own_{path.stem}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)  # so that the file can import its neighbours
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a command's own output may be JSON
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as failure:
        del sys.modules[name]
        raise error(f"{path}: importing it failed: {type(failure).__name__}: {failure}") from failure
    finally:
        sys.path.remove(beside)
    return module
