"""Every mistake a user can meet.

QkdError                      exit 1   something failed at run time
├── UsageError                exit 2   what was asked cannot be done as written
│   ├── RecipeError                    the recipe: every mistake at once, each with file, line and key
│   ├── PlanError                      a method's plan does not fit the networks: unknown tap, differing shapes
│   ├── NetworkError                   a network that cannot be built, traced or cut
│   ├── SchemeError                    a quantization scheme that does not exist or does not fit
│   ├── DataError                      a data set that is missing, empty or unreadable
│   ├── RunError                       a run folder that is missing, unfinished or belongs to another recipe
│   └── ExportError                    a product that has no ONNX form, or a file that is not what was expected
├── TrainingError             exit 1   training broke down (a loss that is not finite), named by step and term
└── GateError                 exit 3   a gate failed: parity, accuracy, latency

Each message says where, what was found, and what is possible. The command line prints it as one line each, without a
traceback (``-v`` shows it). ``key`` names the mistake (``plan.no-phases``) and stays when the wording changes; tests ask
for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class QkdError(Exception):
    """``key`` is the stable name of the mistake: the subject and what is wrong with it, in lower case with hyphens."""

    exit_code = 1

    def __init__(self, message: str = "", *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class UsageError(QkdError):
    exit_code = 2


class Problem(NamedTuple):
    """One mistake in a recipe: where it stands and what is wrong."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.message}"


class RecipeError(UsageError):
    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=lambda p: (p.file, p.line, p.key)))
        super().__init__("\n".join(map(str, self.problems)), key="recipe")


class PlanError(UsageError):
    pass


class NetworkError(UsageError):
    pass


class SchemeError(UsageError):
    pass


class DataError(UsageError):
    pass


class RunError(UsageError):
    pass


class ExportError(UsageError):
    pass


class TrainingError(QkdError):
    pass


class GateError(QkdError):
    exit_code = 3


def nearest(found: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word nearest to what was found, or nothing."""
    near = difflib.get_close_matches(str(found), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
