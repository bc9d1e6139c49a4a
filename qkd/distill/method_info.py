"""What a method declares: its paper, and what it needs of a recipe; a recipe without it is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qkd.errors import PlanError

if TYPE_CHECKING:
    from qkd.distill.plan import Method, Plan, Setup

FIELD = "method_info"
ABOVE_ZERO = "above zero"
TEACHER = "{float: {build: resnet20}}"
Requirement = tuple[str, tuple[object, ...]]  # another option, and its values (or ABOVE_ZERO) ...


class AnyOf(tuple[Requirement, ...]):
    """Requirements of which any will do."""


Needs = Requirement | AnyOf
OnlyWith = Mapping[str, Needs | tuple[Needs, ...]]
"""Option -> what it needs, without which it does nothing: one need, or all of several."""


@dataclass(frozen=True)
class MethodInfo:
    """``teachers`` is the least number of them, ``most`` the largest, ``match`` whether layers have to be matched, ``labels``
    whether they are used.

    ``only_with`` lists the options that do nothing without certain values of others. ``own_copy``: the teachers are meant to
    be the float network that the student was quantized from. ``example``: of ``teachers:``, for a recipe that has too few.
    """

    paper: str
    teachers: int = 0
    match: bool = False
    labels: bool = True
    most: int | None = None
    only_with: OnlyWith = field(default_factory=dict)
    own_copy: bool = False
    example: str = TEACHER

    @property
    def year(self) -> int | None:
        found = re.findall(r"\b(?:19|20)\d\d\b", self.paper)
        return int(found[0]) if found else None

    @property
    def needs(self) -> str:
        """The requirements as text for a table: ``labels, 1+ teachers``."""
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
                f"for example {self.example}",
                key="method.too-few-teachers",
            )
        if self.most is not None and len(setup.teachers) > self.most:
            what = "one teacher" if self.most == 1 else f"at most {self.most} teachers"
            raise PlanError(
                f"{name} takes {what}, found {len(setup.teachers)} under `teachers:`: {', '.join(setup.teachers)}",
                key="method.too-many-teachers",
            )
        if self.match and not setup.stages:
            raise PlanError(
                f"{name} needs matched layers: name them under `match:`, for example [layer1, layer2]",
                key="method.needs-matched-layers",
            )


def unused_options(only_with: OnlyWith, options: Mapping[str, Any]) -> dict[str, str]:
    """The options without effect, given the values of the others, and what would give them one."""
    found: dict[str, str] = {}
    for option, needs in only_with.items():
        for need in _every(needs):
            if message := _unmet(need, options):
                found.setdefault(option, message)
    return found


def requirements(needs: Needs | tuple[Needs, ...]) -> list[Requirement]:
    """All requirements in what an option needs."""
    return [each for need in _every(needs) for each in _alternatives(need)]


def _every(needs: Needs | tuple[Needs, ...]) -> tuple[Needs, ...]:
    """One need or several, as several."""
    return (needs,) if isinstance(needs, AnyOf) or isinstance(needs[0], str) else needs


def _alternatives(need: Needs) -> tuple[Requirement, ...]:
    return need if isinstance(need, AnyOf) else (need,)


def _unmet(need: Needs, options: Mapping[str, Any]) -> str:
    """Why a need is not met; empty where it is."""
    choices = _alternatives(need)
    if any(_meets(options[other], values) for other, values in choices):
        return ""
    now = " and ".join(f"`{other}: {_shown(options[other])}`" for other, _ in choices)
    used = ", or ".join(f"`{other}` is {' or '.join(map(_shown, values))}" for other, values in choices)
    return f"no effect with {now}; it is used where {used}"


def _meets(value: object, values: tuple[object, ...]) -> bool:
    return value in values or (ABOVE_ZERO in values and isinstance(value, int | float) and value > 0)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def published(
    paper: str,
    *,
    teachers: int = 0,
    match: bool = False,
    labels: bool = True,
    most: int | None = None,
    only_with: OnlyWith | None = None,
    own_copy: bool = False,
    example: str = TEACHER,
) -> Callable[[Method], Method]:
    """Declares a method's paper and requirements; the requirements are checked before the method makes a plan."""
    info = MethodInfo(paper, teachers, match, labels, most, only_with or {}, own_copy, example)

    def mark(method: Method) -> Method:
        @functools.wraps(method)
        def checked(setup: Setup, **options: Any) -> Plan:
            info.check(method.__name__, setup)
            return method(setup, **options)

        setattr(checked, FIELD, info)
        return checked

    return mark


def method_info(method: Method) -> MethodInfo | None:
    """What a method declares; None where it declares nothing."""
    found = getattr(method, FIELD, None)
    return found if isinstance(found, MethodInfo) else None
