"""CES-KD: one expert for each image, chosen by how hard the image is (Amara et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from qkd.about import published
from qkd.bounds import Positive, Share
from qkd.plan import Cast, Phase, Plan, Step
from qkd.taps import Tap
from qkd.targets import cross_entropies, routed
from qkd.terms import imitate, label


@published("Amara et al., 2022", teachers=2)
def ceskd(
    cast: Cast,
    *,
    temperature: Positive = 4.0,
    soft: Share = 0.9,
    judge: Literal["smallest", "largest", "student"] = "smallest",
    hardest: Literal["largest", "smallest"] = "largest",
) -> Plan:
    """Frozen experts of growing capacity; easy images are taught by the smallest, hard ones by the largest.

    ``(1 - soft) CE + soft KL(p_r(x) || p_S)`` with r(x) the expert whose turn it is. Experts stand under ``teachers:`` from
    the smallest to the largest.

    * ``judge``: whose cross-entropy says how hard an image is. With the student itself the ranking moves as it learns.
    * ``hardest: smallest``: experts in the wrong order (ablation).

    Images are ranked within their batch, and every expert gets as many. How the paper ranks and paces is not known to us.
    """
    experts = cast.teachers if hardest == "largest" else cast.teachers[::-1]
    judging = {"smallest": cast.teachers[0], "largest": cast.teachers[-1], "student": cast.student}[judge]

    def difficulty(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        return cross_entropies(logits[-1].detach(), labels)

    target = routed([Tap(expert) for expert in experts], difficulty, also=[Tap(judging)])
    terms = [label(cast.student) * (1 - soft), imitate(cast.student, target, temperature=temperature) * soft]
    return Plan((Phase("train", (Step([cast.student], terms),)),))
