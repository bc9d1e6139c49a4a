"""Functions a recipe can name, built in or in a user's file, and their options: names, types, defaults and ranges."""

from __future__ import annotations

import contextlib
import dis
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any, NotRequired

from typing_extensions import TypedDict  # pydantic does not take typing's before Python 3.12

from qkd.errors import UsageError, nearest

WRITABLE = (bool, int, float, str, list, tuple, dict, Path, type(None))  # types of values a recipe can write


def suggestion(found: str, known: Collection[str]) -> str:
    """For a message: the known name that resembles ``found``, or all known names if none does."""
    return nearest(found, known) or f"; known: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Options:
    """The options of a function: parameters by name, their annotations evaluated.

    ``others`` is true if options of other names are passed on unchecked, ``complete`` if the defaults here are those that
    apply (a torchvision builder may override the defaults of the class it builds).
    """

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    others: bool = False
    complete: bool = True

    def unknown(self, given: Collection[str]) -> dict[str, str]:
        """The given names that are not options, each with the suggestion for a message."""
        if self.others:
            return {}
        return {name: suggestion(name, self.parameters) for name in given if name not in self.parameters}


def options_from(function: Callable[..., Any], *, leave: Collection[str] = (), keyword_only: bool = True) -> Options:
    """The options of a function: its keyword-only parameters, or all its named ones, without those in ``leave``.

    A parameter whose default no recipe can write (a class, a function) or whose name starts with _ is not an option.
    """
    kinds = {Parameter.KEYWORD_ONLY} if keyword_only else {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
    parameters = _with_factory_defaults(function, _signature(function).parameters)
    chosen = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in kinds
        and name not in leave
        and not name.startswith("_")
        and (parameter.default is Parameter.empty or isinstance(parameter.default, WRITABLE))
    }
    others = next((name for name, each in parameters.items() if each.kind is Parameter.VAR_KEYWORD), None)
    return Options(chosen, others=others is not None and _reads(function, others))


def _reads(function: Callable[..., Any], name: str) -> bool:
    """Whether a function reads its parameter of that name; of ``**kwargs`` that are never read, each is a misspelt option."""
    function = inspect.unwrap(function)
    called = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    code = getattr(inspect.unwrap(called), "__code__", None)
    if code is None or name not in code.co_varnames:  # made by other means than `def`
        return True
    if name in code.co_cellvars:  # a function inside reads it
        return True
    return any(name == word or (isinstance(word, tuple) and name in word) for word in _words(code))


def _words(code: CodeType) -> Iterator[Any]:
    """What the instructions name; some of Python 3.13 and later load two variables at once."""
    yield from (each.argval for each in dis.get_instructions(code))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except ValueError:  # written in C, without one
        return inspect.Signature()
    except (NameError, AttributeError, SyntaxError, TypeError):  # an annotation that exists for type checkers alone
        signature = inspect.signature(function)
        loose = [p.replace(annotation=Any) for p in signature.parameters.values()]
        return signature.replace(parameters=loose)


def _with_factory_defaults(function: Callable[..., Any], parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters; those of a dataclass with a default factory get the factory's result as default."""
    replaced = dict(parameters)
    for each in fields(function) if is_dataclass(function) else ():
        if each.default_factory is not MISSING and each.name in replaced:
            replaced[each.name] = replaced[each.name].replace(default=each.default_factory())
    return replaced


@dataclass(frozen=True)
class Bounds:
    """The range of a numeric option. Checked for values in a recipe, not in direct calls."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Add the limits to the schema with which pydantic checks a recipe; nothing else here needs pydantic."""
        limits = {"ge": self.at_least, "gt": self.above, "le": self.at_most, "lt": self.below}
        return {**handler(source), **{name: limit for name, limit in limits.items() if limit is not None}}


Count = Annotated[int, Bounds(at_least=1)]

MAX_SEED = 2**63 - 1  # of torch.manual_seed

Seed = Annotated[int, Bounds(at_least=0, at_most=MAX_SEED)]

Positive = Annotated[float, Bounds(above=0)]

Share = Annotated[float, Bounds(at_least=0, at_most=1)]

NotNegative = Annotated[float, Bounds(at_least=0)]

ShareCourse = TypedDict("ShareCourse", {"from": Share, "to": Share, "until": NotRequired[Share]})
"""A share that changes over a phase: ``{from: 0.9, to: 0.5}``, in a straight line that may end ``until`` some share of it."""
ShareCourse.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


def is_user_code(name: str) -> bool:
    """Whether a name refers to code in a file, as in ``./file.py:Name``."""
    return name.partition(".py:")[1] != "" or name.endswith(".py")


def look_up(name: str, known: Mapping[str, Any], *, what: str, error: type[UsageError] = UsageError) -> Any:
    """The entry of ``known`` with that name, or the object that ``file.py:Name`` refers to.

    Raises ``error`` if there is none; ``what`` is the kind of entry for the message ("method").
    """
    if is_user_code(name):
        return load_user_code(name, error=error)
    if name not in known:
        raise error(f"no {what} {name!r}{suggestion(name, known)}", key=f"{what.replace(' ', '-')}.unknown-name")
    return known[name]


def load_user_code(name: str, *, error: type[UsageError] = UsageError) -> Any:
    """The object called Name in a Python file, for ``file.py:Name``; a file is executed once for each content.

    Raises ``error`` for a missing file, a file that fails on import, and a missing name.
    """
    path, name = _path_and_name(name, error)
    module = _import_file(path, error)
    if not hasattr(module, name):
        public = {word: value for word, value in vars(module).items() if callable(value) and not word.startswith("_")}
        defined = [word for word, value in public.items() if getattr(value, "__module__", None) == module.__name__]
        known = f"; it has: {', '.join(defined)}" if defined else ""
        raise error(f"{path}: no {name!r} in it{nearest(name, public)}{known}", key="user-code.unknown-name")
    return getattr(module, name)


def _path_and_name(text: str, error: type[UsageError]) -> tuple[Path, str]:
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name:
        raise error(f"{text}: which name of the file? write {text.rstrip(':')}:Name", key="user-code.no-name")
    path = Path(file)
    if not path.is_file():
        raise error(f"{file}: no such file (tried {path.resolve()})", key="user-code.missing-file")
    return path, name


def _import_file(path: Path, error: type[UsageError]) -> ModuleType:
    content = hashlib.sha256(f"{path.resolve()}\n".encode() + path.read_bytes()).hexdigest()[:16]
    name = f"qkd_own_{path.stem}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # so that the file can import others of its folder
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a command's own output may be JSON
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as failure:
        del sys.modules[name]
        reason = f"{type(failure).__name__}: {failure}"
        raise error(f"{path}: importing it failed: {reason}", key="user-code.failed-import") from failure
    finally:
        sys.path.remove(folder)
    return module


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
