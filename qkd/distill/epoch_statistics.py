"""Epoch statistics: what a method measures on a whole split before an epoch, and its terms read as a tap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.distill.taps import Tap
from qkd.distill.targets import cross_entropies, strata
from qkd.tasks.batch import Batch

STATISTICS = "statistics"  # the stage under which they are recorded


class EpochStatistics(nn.Module, ABC):
    """Measured on a split before each epoch, or with ``once`` before the first, in order and without augmentation.

    All networks are in evaluation mode, without gradients. The result is part of the state, so that a resumed run has it,
    and is recorded at ``tap`` in every forward pass; terms, targets and heads read it there.
    """

    name: str
    reads: tuple[Tap, ...] = ()
    split: Literal["train", "val"] = "val"
    once: bool = False

    @property
    def tap(self) -> Tap:
        return Tap(self.name, STATISTICS)

    @abstractmethod
    def reset(self) -> None:
        """The split begins: forget what was gathered the last time."""

    @abstractmethod
    def update(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        """One batch, and the tensors of ``reads``."""

    @abstractmethod
    def compute(self) -> None:
        """The split is over: keep the result."""

    @abstractmethod
    def result(self) -> Tensor:
        """The result as it is now; before the first epoch a neutral one."""


class ErrorCovariance(EpochStatistics):
    """Weights for several classifiers, by how their errors go together: ``w_i = sum_j C^-1_ij / sum_kj C^-1_kj``. (members,)

    ``C_ij`` is the mean of ``(f_i - t)(f_j - t)`` over images and classes, f being probabilities and t the labels: a member
    counts more if it errs little, and differently from the rest; its weight may be negative. They sum to one and begin
    uniform. A hundredth of the mean variance on the diagonal keeps the inverse stable where members are alike.
    Source: Guo et al. 2020 (KDCL), General.
    """

    name = "error_covariance"

    def __init__(self, reads: Sequence[Tap]) -> None:
        super().__init__()
        self.reads = tuple(reads)
        count = len(self.reads)
        self.weights: Tensor
        self.gathered: Tensor
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("gathered", torch.zeros(count, count), persistent=False)

    def reset(self) -> None:
        self.gathered.zero_()

    def update(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        right = F.one_hot(batch.labels, tensors[0].shape[1])
        errors = torch.stack([(logits.float().softmax(1) - right).flatten() for logits in tensors])
        self.gathered += errors @ errors.t()  # a common factor does not count

    def compute(self) -> None:
        c = self.gathered.double()
        ridge = 0.01 * c.diagonal().mean().clamp(min=1e-12) * torch.eye(len(c), dtype=c.dtype, device=c.device)
        shares = torch.linalg.inv(c + ridge).sum(1)
        self.weights.copy_(shares / shares.sum())

    def result(self) -> Tensor:
        return self.weights


class Difficulty(EpochStatistics):
    """The stratum 0..count-1 of every training image, by the cross-entropy of a judge; strata of equal size. (N,) int64

    Empty before the first epoch. A judge that does not learn is asked ``once``. Source: Amara et al. 2022 (CES-KD); that
    the ranking goes over the whole training split is our reading.
    """

    name = "difficulty"
    split = "train"

    def __init__(self, judge: Tap, count: int, *, once: bool) -> None:
        super().__init__()
        self.reads, self.count, self.once = (judge,), count, once
        self.strata = torch.zeros(0, dtype=torch.long)
        self.gathered: list[Tensor] = []

    def reset(self) -> None:
        self.gathered.clear()

    def update(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        self.gathered.append(cross_entropies(tensors[0], batch.labels))

    def compute(self) -> None:
        self.strata = strata(torch.cat(self.gathered), self.count)
        self.reset()

    def result(self) -> Tensor:
        return self.strata

    def get_extra_state(self) -> Tensor:
        return self.strata

    def set_extra_state(self, state: Tensor) -> None:
        self.strata = state


def stratum_of(ids: Tensor, strata: Tensor) -> Tensor:
    """The strata of images by their ids; the first for all where none are known yet. (batch,), (N,) -> (batch,) int64"""
    return strata.to(ids.device)[ids].long() if len(strata) else torch.zeros_like(ids)
