"""Stitch: a feature map put together from patches of two, and the decoder that restores one of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.distill.relational_losses import alignment


class Stitch(nn.Module):
    """Restores the teacher's map from a hybrid of both: (B, C_S, H, W), (B, C_T, H, W) -> (B, C_T, H, W).

    Every patch of the hybrid is the teacher's with the probability ``1 - CKA`` of the two maps in this batch: the closer
    the student comes, the less it is told. A fixed ``prior`` takes the place of that number. Only the student's patches
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
