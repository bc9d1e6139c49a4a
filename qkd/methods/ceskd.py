"""CES-KD: one expert for each image, chosen by how hard the image is (Amara et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from qkd.distill.epoch_statistics import Difficulty, stratum_of
from qkd.distill.imitation import Imitation, Logits, imitation_options
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import cross_entropies, routed, strata
from qkd.distill.terms import label
from qkd.options import NotNegative, Positive, Share

if TYPE_CHECKING:
    from qkd.tasks.batch import Batch


@published("Amara et al., 2022, arXiv 2209.07606", teachers=2, only_with=imitation_options())
def ceskd(
    setup: Setup,
    *,
    temperature: Positive = 4.0,
    soft: Share = 0.9,
    logits: Logits = "kl",
    standardise: bool = False,
    others: NotNegative = 8.0,
    judge: Literal["smallest", "largest", "student"] = "smallest",
    ranking: Literal["split", "batch"] = "split",
    hardest: Literal["largest", "smallest"] = "largest",
) -> Plan:
    """Frozen experts of growing capacity; easy images are taught by the smallest, hard ones by the largest.

    ``(1 - soft) CE + soft KL(p_r(x) || p_S)`` with r(x) the expert of the image's stratum. Experts are listed under
    ``teachers:`` from the smallest to the largest.

    * ``logits``, ``standardise``, ``others``: how logits are compared, see `Imitation`.
    * ``judge``: the network whose cross-entropy measures how hard an image is; for the student, which learns, it is
      measured anew before each epoch.
    * ``ranking``: among all training images, or among those of a batch. Either way every expert gets as many.
    * ``hardest: smallest``: experts in the wrong order (ablation).

    How the paper ranks and paces is not known to us.
    """
    experts = setup.teachers if hardest == "largest" else setup.teachers[::-1]
    judging = {
        "smallest": setup.teachers[0],
        "largest": setup.teachers[-1],
        "student": setup.student,
    }[judge]

    difficulty = Difficulty(Tap(judging), len(experts), once=judge != "student")

    def among_all(tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        return stratum_of(batch.ids, tensors[-1])

    def within_batch(tensors: Sequence[Tensor], batch: Batch) -> Tensor:
        return strata(cross_entropies(tensors[-1].detach(), batch.labels), len(experts))

    taps = [Tap(expert) for expert in experts]
    whole = ranking == "split"
    target = routed(taps, among_all, [difficulty.tap]) if whole else routed(taps, within_batch, [Tap(judging)])
    imitation = Imitation(logits, temperature, standardise, others)
    terms = [label(setup.student) * (1 - soft), imitation.term(setup.student, target) * soft]
    return Plan((Phase("train", (Step([setup.student], terms),)),), statistics=(difficulty,) if whole else ())
