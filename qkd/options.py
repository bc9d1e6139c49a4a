"""What a recipe can name and set: functions by name or in a user's file, their options, and the range of each option."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from qkd.errors import UsageError, nearest

PLAIN = (bool, int, float, str, list, tuple, dict, Path, type(None))  # what a recipe can write


def suggestion(found: str, known: Collection[str]) -> str:
    """The known word nearest to what was found, or all known words if none is near."""
    return nearest(found, known) or f"; known: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Options:
    """What can be set: parameters by name, their annotations evaluated.

    ``others`` says whether further names are passed on unchecked, ``complete`` whether the defaults seen here are the
    ones in force (a builder may set others behind our back).
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    others: bool = False
    complete: bool = True

    def unknown(self, given: Collection[str]) -> dict[str, str]:
        """What is wrong with each given name that is no option, by name."""
        if self.others:
            return {}
        return {name: suggestion(name, self.parameters) for name in given if name not in self.parameters}


def options_from(function: Callable[..., Any], *, leave: Collection[str] = (), keyword_only: bool = True) -> Options:
    """The keyword-only parameters of a function, or all that can be given by name, except those to ``leave`` out.

    A parameter whose default no recipe can write (a class, a function) is not an option.
    """
    kinds = {Parameter.KEYWORD_ONLY} if keyword_only else {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
    parameters = _with_made_defaults(function, _signature(function).parameters)
    chosen = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in kinds
        and name not in leave
        and not name.startswith("_")
        and (parameter.default is Parameter.empty or isinstance(parameter.default, PLAIN))
    }
    return Options(chosen, others=any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except ValueError:  # written in C, without one
        return inspect.Signature()
    except (NameError, AttributeError, SyntaxError, TypeError):  # an annotation that exists for type checkers alone
        signature = inspect.signature(function)
        loose = [p.replace(annotation=Any) for p in signature.parameters.values()]
        return signature.replace(parameters=loose)


def _with_made_defaults(function: Callable[..., Any], parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """A dataclass makes some defaults anew for each instance; here they are made once, to be seen."""
    made = dict(parameters)
    for each in fields(function) if is_dataclass(function) else ():
        if each.default_factory is not MISSING and each.name in made:
            made[each.name] = made[each.name].replace(default=each.default_factory())
    return made


@dataclass(frozen=True)
class Bounds:
    """What a number has to satisfy. A recipe is held to it; a direct call is not."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """How pydantic, which reads recipes, learns of it; no other part of the project needs pydantic for that."""
        limits = {"ge": self.at_least, "gt": self.above, "le": self.at_most, "lt": self.below}
        return {**handler(source), **{name: limit for name, limit in limits.items() if limit is not None}}


Count = Annotated[int, Bounds(at_least=1)]

Seed = Annotated[int, Bounds(at_least=0, at_most=2**63 - 1)]  # what torch takes

Positive = Annotated[float, Bounds(above=0)]

Share = Annotated[float, Bounds(at_least=0, at_most=1)]

NotNegative = Annotated[float, Bounds(at_least=0)]


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
