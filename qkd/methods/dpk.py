"""DPK: dynamic prior knowledge, the teacher's features as part of the input (Qiu et al., ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.distill.heads import Head
from qkd.distill.method_info import ABOVE_ZERO, published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.relational_losses import alignment
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import Term, hint, imitate, label
from qkd.errors import PlanError
from qkd.options import Count, NotNegative, Positive, Share


@published(
    "Qiu et al., ICLR 2023",
    teachers=1,
    most=1,
    match=True,
    only_with={"temperature": ("soft", (ABOVE_ZERO,))},
)
def dpk(
    setup: Setup,
    *,
    beta: Positive = 1.0,
    patch: Count = 2,
    prior: Share | None = None,
    soft: NotNegative = 0.0,
    temperature: Positive = 4.0,
) -> Plan:
    """Patches of the student's and the teacher's feature map are mixed; a decoder restores the teacher's map from them.

    ``CE + beta sum_l || D_l(hybrid_l) - F^T_l ||^2 (+ soft KL)`` over the layers of ``match:``, the mean over positions.
    The share of teacher patches is ``1 - CKA`` of the two maps in the batch: prior knowledge fades as the student
    approaches. The teacher is frozen; aligners and decoders learn and stay out of the product.

    * ``prior``: a fixed share instead (ablation): 0 is a hint through a decoder. * ``patch``: its side, in positions.
    * ``soft``: KL of the logits on top.

    How the paper maps CKA to the share, its patches and its decoder are not known to us (transformer blocks there).
    """
    (teacher,) = setup.teachers
    terms: list[Term] = [label(setup.student)]
    heads = []
    for stage in setup.stages:
        own, theirs = setup.shapes[Tap(setup.student, stage)], setup.shapes[Tap(teacher, stage)]
        if own[1:] != theirs[1:] or len(own) != 3:
            raise PlanError(
                f"match: {stage}: dpk needs maps of one height and width, found {own} and {theirs}",
                key="match.sizes-differ",
            )
        body = PatchMixer(own[0], theirs[0], patch=patch, prior=prior)
        taps = [Tap(setup.student, stage), Tap(teacher, stage)]
        name = f"restore_{stage.replace('.', '_')}"
        heads.append(Head(name, taps, body, about="mixes patches of both and restores", separate_inputs=True))
        terms.append(hint(Tap(heads[-1].name), taps[1]) * beta)
    if soft:
        terms.append(imitate(setup.student, one(Tap(teacher)), temperature=temperature) * soft)
    learners = [setup.student, *(head.name for head in heads)]
    return Plan((Phase("train", (Step(learners, terms),)),), heads=tuple(heads))


class PatchMixer(nn.Module):
    """Restores the teacher's map from a hybrid of both: (B, C_S, H, W), (B, C_T, H, W) -> (B, C_T, H, W).

    Every patch of the hybrid is the teacher's with the probability ``1 - CKA`` of the two maps in this batch: the more alike
    they are, the fewer teacher patches. A fixed ``prior`` replaces that number. Only the student's patches
    and the decoder get gradients. Source: Qiu et al. 2023 (DPK).
    """

    def __init__(self, student: int, teacher: int, *, patch: int, prior: float | None = None) -> None:
        super().__init__()
        self.patch, self.prior = patch, prior
        self.align = nn.Conv2d(student, teacher, 1)
        self.decode = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, 1, 1, bias=False),
            nn.BatchNorm2d(teacher),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 3, 1, 1),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        teacher = teacher.detach()
        return self.decode(torch.where(self.mask(student, teacher), teacher, self.align(student)))

    @torch.no_grad()
    def mask(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Where the hybrid is the teacher's. -> (B, 1, H, W) bool"""
        batch, _, height, width = teacher.shape
        share = 1 - alignment(student, teacher) if self.prior is None else self.prior
        grid = torch.rand(batch, 1, -(-height // self.patch), -(-width // self.patch)).to(teacher.device)
        return F.interpolate(grid, scale_factor=self.patch)[..., :height, :width] < share
