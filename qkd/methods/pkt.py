"""PKT-H: distillation of information flow, through an auxiliary teacher (Passalis et al., CVPR 2020)."""

from __future__ import annotations

from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.relational_losses import information_flow
from qkd.distill.schedules import Decay
from qkd.distill.taps import Tap
from qkd.distill.terms import label, relate
from qkd.options import NotNegative, Positive


@published("Passalis et al., CVPR 2020", teachers=1, most=2, match=True)
def pkt(
    setup: Setup,
    *,
    last: NotNegative = 1.0,
    hidden: NotNegative = 100.0,
    decay: Positive = 0.7,
    times: Positive = 50.0,
    labels: Positive = 1.0,
    strength: Positive = 640.0,
    preparation: Positive = 0.5,
) -> Plan:
    """Layer by layer, samples that are neighbours in the teacher become neighbours in the student.

    ``labels CE + strength (last J_K + sum_l hidden decay^(times t) J_l)``, J the Jeffreys divergence of two affinities per
    layer of ``match:``, t the progress: hidden layers count strongly at first, then ever less.

    With two teachers the second is the auxiliary one: shaped like the student, layer by layer, it first learns the last
    matched layer from the first, for ``preparation`` times as long as it then teaches. With one there is no such phase.

    Departures: the paper uses no labels because it ranks by distance; a classifier needs them. Its J is a mean over
    ``batch^2`` pairs; ``strength`` gives that a size comparable with CE.
    """
    *early, final = setup.stages
    guide = setup.teachers[-1]
    terms = [label(setup.student) * labels]
    if last:
        terms.append(relate("flow", information_flow, Tap(setup.student, final), Tap(guide, final)) * (strength * last))
    terms += [
        relate("flow", information_flow, Tap(setup.student, stage), Tap(guide, stage))
        * Decay(strength * hidden, decay, times)
        for stage in (early if hidden else ())
    ]
    phases = [Phase("transfer", (Step([setup.student], terms),))]
    if len(setup.teachers) == 2:
        learned = relate("flow", information_flow, Tap(guide, final), Tap(setup.teachers[0], final)) * (strength * last)
        phases.insert(0, Phase("auxiliary", (Step([guide], [label(guide) * labels, learned]),), preparation))
    return Plan(tuple(phases))
