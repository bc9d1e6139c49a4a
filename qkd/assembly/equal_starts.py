"""Equal starts: networks that begin as copies of each other and teach each other nothing, and copies that are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from qkd.assembly.build import STUDENT
from qkd.distill.method_info import method_info
from qkd.distill.plan import Learner, Phase, Plan
from qkd.distill.taps import SHARED, Tap
from qkd.methods import METHODS
from qkd.options import look_up

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.distill.terms import Term
    from qkd.errors import Problem
    from qkd.recipe import NetworkEntry, Recipe


def equal_starts(recipe: Recipe) -> list[tuple[str, ...]]:
    """Groups of networks that begin with the same float weights."""
    return _groups(pair for pair in combinations(recipe.owners, 2) if recipe.begin_equal(*pair))


def find_equal_starts(recipe: Recipe, assembly: Assembly) -> list[Problem]:
    """Networks that are equal in everything and are to teach each other, or to be combined, at the line of the last of them.

    Equal are architecture, scheme, float weights, the view of the images, the learning rate, and whether they learn. As long
    as nothing else tells them apart they get the same gradients and stay copies, and a divergence between them is zero.
    Networks of which one has learned alone in an earlier phase are no longer equal.
    """
    plan = assembly.plan
    found: list[Problem] = []
    pairs = [pair for pair in combinations(recipe.owners, 2) if _equal(recipe, plan, *pair)]
    joined = [pair for pair in pairs if _meet_as_copies(plan, *pair)]
    for group in _groups(joined):
        *others, last = group
        wanted = "`seed:` (or none)" if recipe.owners[last].is_seeded else "`start_from:`"
        message = (
            f"{', '.join(others)} and {last} are equal in everything (build, scheme, float weights, view of the images), so "
            f"together they teach no more than one of them in {recipe.method.name}; give {last} another {wanted} or other bits"
        )
        found.append(recipe.problem(recipe.key_of(last), message))
    return found


def find_foreign_teachers(recipe: Recipe) -> list[Problem]:
    """Teachers that do not begin with the student's float weights, for a method that asks for the student's own float copy."""
    known = method_info(look_up(recipe.method.name, METHODS, what="method"))
    teachers = {part: entry for part, entry in recipe.owners.items() if part != STUDENT}
    foreign = {part: entry for part, entry in teachers.items() if not recipe.begin_equal(STUDENT, part)}
    if known is None or not known.own_copy:
        return []
    message = f"does not begin with the student's float weights, and {recipe.method.name} imitates the student's own float copy"
    return [
        recipe.problem(recipe.key_of(part), f"{message}; {_how_to_copy(recipe, entry)}")
        for part, entry in foreign.items()
    ]


def _how_to_copy(recipe: Recipe, teacher: NetworkEntry) -> str:
    """What to write so that a teacher begins with the student's float weights."""
    student = recipe.student
    if (teacher.build, teacher.options) != (student.build, student.options):
        return "give it the student's build and options"
    if teacher.start_from != student.start_from:
        return f"give it the student's `start_from: {student.start_from}`"
    seed = recipe.seed_of(STUDENT)
    return f"write `seed: {'same' if seed == recipe.seed else seed}` in its entry"


def _equal(recipe: Recipe, plan: Plan, one: str, other: str) -> bool:
    members = plan.exchange.members if len(plan.exchange.members) > 1 else ()

    def circumstances(part: str) -> tuple[object, ...]:
        scheme, rate = recipe.owners[part].quantize, plan.rate_of(Learner(part))
        return scheme, plan.views.get(part, 0), rate, part in members

    return recipe.begin_equal(one, other) and circumstances(one) == circumstances(other)


def _meet_as_copies(plan: Plan, one: str, other: str) -> bool:
    """Whether two networks that begin equal are still equal in the first phase in which they teach each other."""
    for phase in plan.phases:
        if (one in phase.parts) != (other in phase.parts):
            return False
        if _joined(plan, phase, one, other):
            return True
    return False


def _joined(plan: Plan, phase: Phase, one: str, other: str) -> bool:
    """Whether each is taught by the other, or a term reads something that is made of both."""
    taught = set[tuple[str, str]]()
    for term in (term for step in phase.steps for term in step.terms):
        pupils, sources = _pupils_and_sources(plan, term)
        if {one, other} <= pupils or {one, other} <= sources:
            return True
        taught |= {(pupil, source) for pupil in pupils for source in sources}
    return {(one, other), (other, one)} <= taught


def _pupils_and_sources(plan: Plan, term: Term) -> tuple[set[str], set[str]]:
    """The networks behind what a term's pupil gave, and behind what it is compared with."""
    first, *rest = term.reads
    return set(_networks(plan, [first])), set(_networks(plan, rest))


def _networks(plan: Plan, taps: Iterable[Tap]) -> Iterator[str]:
    """The networks whose outputs a tensor is made of, through heads and the exchange."""
    for tap in taps:
        head = plan.head(tap.part)
        if head is not None:
            yield from _networks(plan, head.reads)
        elif tap.part == SHARED:
            yield from plan.exchange.members
        else:
            yield tap.part


def _groups(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Pairs as groups, in the order of the networks: equality reaches from pair to pair."""
    groups: list[list[str]] = []
    for one, other in pairs:
        group = next((group for group in groups if one in group or other in group), None)
        if group is None:
            groups.append([one, other])
        else:
            group += [part for part in (one, other) if part not in group]
    return [tuple(group) for group in groups]
