"""A method as a user writes it, in a file of its own."""

from __future__ import annotations

MINE = '''
from qkd.distill.method_info import published
from qkd.options import NotNegative
from qkd.distill.plan import Setup, Phase, Plan, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import attend, label


@published("Mine, 2026", teachers=1, match=True)
def my_method(setup: Setup, *, weight: NotNegative = 10.0) -> Plan:
    """Look where the first teacher looks."""
    looks = [attend(Tap(setup.student, s), Tap(setup.teachers[0], s)) * weight for s in setup.stages]
    return Plan((Phase("train", (Step([setup.student], [label(setup.student), *looks]),)),))


def not_a_method(setup: Setup) -> str:
    return "nothing"
'''
