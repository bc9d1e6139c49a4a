"""A method as a user writes it, in a file of its own."""

from __future__ import annotations

MINE = '''
from qkd.distill.method_info import published
from qkd.options import NotNegative
from qkd.distill.plan import Cast, Phase, Plan, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import attend, label


@published("Mine, 2026", teachers=1, match=True)
def my_method(cast: Cast, *, weight: NotNegative = 10.0) -> Plan:
    """Look where the first teacher looks."""
    looks = [attend(Tap(cast.student, s), Tap(cast.teachers[0], s)) * weight for s in cast.stages]
    return Plan((Phase("train", (Step([cast.student], [label(cast.student), *looks]),)),))


def not_a_method(cast: Cast) -> str:
    return "nothing"
'''
