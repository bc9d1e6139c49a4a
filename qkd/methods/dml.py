"""DML: deep mutual learning, peers that teach each other (Zhang et al., CVPR 2018)."""

from __future__ import annotations

from typing import Literal

from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import ABOVE_ZERO, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.terms import Term, label
from qkd.options import NotNegative, Positive


@published("Zhang et al., CVPR 2018", teachers=1, only_with=imitation_options(("weight", (ABOVE_ZERO,))))
def dml(
    setup: Setup,
    *,
    temperature: Positive = 1.0,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    weight: NotNegative = 1.0,
    update: Literal["together", "in_turn"] = "together",
) -> Plan:
    """Peers learn at the same time, each from the labels and from all the others.

    ``L_i = CE_i + weight / (K - 1) sum_j KL(p_j || p_i)`` (eq. 8), targets constant. The student is one of the peers, those
    under ``teachers:`` are the others.

    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``update: in_turn``: one peer after the other takes its step, and the next one learns from its updated logits
      (algorithm 1 of the paper). It runs all networks once per peer; those that do not learn run in evaluation mode.
    * ``update: together``: one step for all, as most re-implementations have it; the default because it costs a K-th.

    A peer that is a view of another network (its moving average, for example) teaches the others and learns nothing itself.
    """
    imitation = Imitation(logits, temperature, standardise, others)
    pupils = setup.can_learn(setup.all_networks)

    def terms(peer: str) -> list[Term]:
        peers = [name for name in setup.all_networks if name != peer]
        return [label(peer), *(imitation.mutual(peer, peers, weight=weight) if weight else [])]

    if update == "in_turn":
        steps = tuple(Step([peer], terms(peer)) for peer in pupils)
    else:
        steps = (Step(pupils, [term for peer in pupils for term in terms(peer)]),)
    return Plan((Phase("train", steps),))
