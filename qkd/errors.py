"""The exceptions of qkd, all below QkdError, and the exit code of the command line for each.

QkdError                      exit 1   something failed at run time
├── UsageError                exit 2   what was requested cannot be done as written
│   ├── RecipeError                    a recipe: every mistake at once, each with file, line and key
│   ├── PlanError                      a method's plan does not fit the networks: unknown tap, differing shapes
│   ├── NetworkError                   a network that cannot be built, traced or cut
│   ├── SchemeError                    a quantization scheme that does not exist or does not fit
│   ├── DataError                      a data set that is missing, too small or unreadable
│   ├── RunError                       a run folder that is missing, unfinished or belongs to another recipe
│   └── ExportError                    a network that has no ONNX form, or a file that is not what was expected
├── TrainingError             exit 1   training cannot continue (a loss that is not finite), named by step and term
└── GateError                 exit 3   a gate failed: parity, accuracy, latency

Each message says where, what was found, and what is possible. The command line prints it in one line, without a traceback
(``-v`` shows it). ``key`` identifies the error (``plan.no-phases``) and stays the same when the wording changes, so that
programs and tests can rely on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class QkdError(Exception):
    """The base of all errors of qkd.

    ``key`` is a stable identifier, ``subject.what-is-wrong`` in lower case with hyphens.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class UsageError(QkdError):
    """What was requested cannot be done as written."""

    exit_code = 2


class Problem(NamedTuple):
    """One mistake in a recipe: its file, its line (from 1), its recipe key (``train.epochs``), and what is wrong."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.message}"


class RecipeError(UsageError):
    """The mistakes of a recipe, in ``problems``, sorted by file, line and key; the message has a line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=lambda p: (p.file, p.line, p.key)))
        super().__init__("\n".join(map(str, self.problems)), key="recipe")


class PlanError(UsageError):
    """A method's plan does not fit the networks."""


class NetworkError(UsageError):
    """A network cannot be built, traced or cut into stages."""


class SchemeError(UsageError):
    """A quantization scheme does not exist or does not fit."""


class DataError(UsageError):
    """A data set is missing, too small or unreadable."""


class RunError(UsageError):
    """A run folder is missing, unfinished, damaged, or cannot be written."""


class ExportError(UsageError):
    """A network has no ONNX form, or an exported file is not what was expected."""


class TrainingError(QkdError):
    """Training cannot continue: a loss is not finite."""


class GateError(QkdError):
    """An exported file failed a check: parity, accuracy or latency."""

    exit_code = 3


def nearest(found: object, known: Iterable[str]) -> str:
    """For a message: `` (did you mean 'x'?)`` with the known word that resembles ``found``, or an empty text."""
    near = difflib.get_close_matches(str(found), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
