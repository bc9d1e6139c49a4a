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
Requirement = tuple[str, tuple[object, ...]]  # another option, and its values (or ABOVE_ZERO) ...
OnlyWith = Mapping[str, Requirement]  # ... without which an option does nothing


@dataclass(frozen=True)
class MethodInfo:
    """``teachers`` is the least number of them, ``most`` the largest, ``match`` whether layers have to be matched, ``labels``
    whether they are used.

    ``only_with`` lists the options that do nothing unless another option has certain values.
    """

    paper: str
    teachers: int = 0
    match: bool = False
    labels: bool = True
    most: int | None = None
    only_with: OnlyWith = field(default_factory=dict)

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
                f"for example {{float: {{build: resnet20}}}}",
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
    found = {}
    for option, (other, values) in only_with.items():
        value = options[other]
        if value not in values and not (ABOVE_ZERO in values and isinstance(value, int | float) and value > 0):
            wanted = " or ".join(map(_shown, values))
            found[option] = f"no effect with `{other}: {_shown(value)}`; it is used where `{other}` is {wanted}"
    return found


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
) -> Callable[[Method], Method]:
    """Declares a method's paper and requirements; the requirements are checked before the method makes a plan."""
    info = MethodInfo(paper, teachers, match, labels, most, only_with or {})

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
