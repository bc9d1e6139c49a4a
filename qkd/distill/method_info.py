"""About: what a method says of itself, and what it needs of a recipe, refused by name where it is missing."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qkd.errors import PlanError

if TYPE_CHECKING:
    from qkd.distill.plan import Method, Plan, Setup

FIELD = "about"
ABOVE_ZERO = "above zero"
Requirement = tuple[str, tuple[object, ...]]  # another option, and its values (or ABOVE_ZERO) ...
OnlyWith = Mapping[str, Requirement]  # ... without which an option does nothing


@dataclass(frozen=True)
class MethodInfo:
    """``teachers`` is the least number of them, ``match`` whether layers have to be matched, ``labels`` whether they are used.

    ``only_with`` says which options do nothing unless another has certain values.
    """

    paper: str
    teachers: int = 0
    match: bool = False
    labels: bool = True
    most: int | None = None  # the largest number of teachers
    only_with: OnlyWith = field(default_factory=dict)

    @property
    def year(self) -> int | None:
        found = re.findall(r"\b(?:19|20)\d\d\b", self.paper)
        return int(found[0]) if found else None

    @property
    def needs(self) -> str:
        """In words, for a table."""
        count = {None: f"{self.teachers}+", self.teachers: f"{self.teachers}"}.get(
            self.most, f"{self.teachers}-{self.most}"
        )
        teachers = f"{count} teacher{'s' * (count != '1')}" if self.teachers else ""
        return ", ".join(filter(None, ("labels" * self.labels, teachers, "matched layers" * self.match))) or "nothing"

    def check(self, name: str, setup: Setup) -> None:
        """Raises PlanError naming what to add to the recipe."""
        if len(setup.teachers) < self.teachers:
            what = "a teacher" if self.teachers == 1 else f"{self.teachers} teachers"
            raise PlanError(
                f"{name} needs {what}, found {len(setup.teachers) or 'none'}: add to `teachers:`, "
                f"for example {{float: {{build: resnet20}}}}"
            )
        if self.most is not None and len(setup.teachers) > self.most:
            what = "one teacher" if self.most == 1 else f"at most {self.most} teachers"
            raise PlanError(
                f"{name} takes {what}, found {len(setup.teachers)} under `teachers:`: {', '.join(setup.teachers)}"
            )
        if self.match and not setup.stages:
            raise PlanError(f"{name} needs matched layers: name them under `match:`, for example [layer1, layer2]")


def unused_options(only_with: OnlyWith, options: Mapping[str, Any]) -> dict[str, str]:
    """The options that do nothing beside the others as they are, and what would make them do something."""
    found = {}
    for option, (other, values) in only_with.items():
        value = options[other]
        if value not in values and not (ABOVE_ZERO in values and isinstance(value, int | float) and value > 0):
            wanted = " or ".join(map(_shown, values))
            found[option] = f"does nothing with `{other}: {_shown(value)}`; it counts where `{other}` is {wanted}"
    return found


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def published(
    paper: str,
    *,
    teachers: int = 0,
    match: bool = False,
    labels: bool = True,
    most: int | None = None,
    only_with: OnlyWith | None = None,
) -> Callable[[Method], Method]:
    """Marks a method with its paper and its needs, and checks them before it is asked for a plan."""
    about = MethodInfo(paper, teachers, match, labels, most, only_with or {})

    def mark(method: Method) -> Method:
        @functools.wraps(method)
        def checked(setup: Setup, **options: Any) -> Plan:
            about.check(method.__name__, setup)
            return method(setup, **options)

        setattr(checked, FIELD, about)
        return checked

    return mark


def method_info(method: Method) -> MethodInfo | None:
    """What a method says of itself; None where it says nothing."""
    found = getattr(method, FIELD, None)
    return found if isinstance(found, MethodInfo) else None
