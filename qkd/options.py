"""The options of a function: its signature is the only place that lists them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any

from qkd.errors import nearest

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
