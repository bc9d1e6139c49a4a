"""Survey: what a method finds out before each epoch, by a look at a whole split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.distill.taps import Tap
from qkd.distill.targets import cross_entropies, strata

if TYPE_CHECKING:
    from qkd.data import Batch


class EpochStatistics(nn.Module, ABC):
    """Sees a split once before each epoch, or with ``once`` before the first, in order and without augmentation.

    Everybody is in evaluation mode, without gradients. What it finds is kept in its state, so that a resumed run knows it
    too. Targets and exchanges read it from there.
    """

    reads: tuple[Tap, ...] = ()
    split: Literal["train", "val"] = "val"
    once: bool = False

    @abstractmethod
    def begin(self) -> None:
        """The split begins: forget what was gathered the last time."""

    @abstractmethod
    def see(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        """One batch, and the tensors of ``reads``."""

    @abstractmethod
    def conclude(self) -> None:
        """The split is over: put the finding into its buffer."""


class ErrorCovariance(EpochStatistics):
    """Weights for several classifiers, by how their errors go together: ``w_i = sum_j C^-1_ij / sum_kj C^-1_kj``.

    ``C_ij`` is the mean of ``(f_i - t)(f_j - t)`` over images and classes, f being probabilities and t the labels: who errs
    little, and otherwise than the rest, counts more; one may count less than nothing. They sum to one and begin uniform.
    A hundredth of the mean variance on the diagonal keeps the inverse calm where members are alike.
    Source: Guo et al. 2020 (KDCL), General.
    """

    def __init__(self, reads: Sequence[Tap]) -> None:
        super().__init__()
        self.reads = tuple(reads)
        count = len(self.reads)
        self.weights: Tensor
        self.gathered: Tensor
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("gathered", torch.zeros(count, count), persistent=False)

    def begin(self) -> None:
        self.gathered.zero_()

    def see(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        right = F.one_hot(batch.labels, tensors[0].shape[1])
        errors = torch.stack([(logits.float().softmax(1) - right).flatten() for logits in tensors])
        self.gathered += errors @ errors.t()  # a common factor does not count

    def conclude(self) -> None:
        c = self.gathered.double()
        calm = 0.01 * c.diagonal().mean().clamp(min=1e-12) * torch.eye(len(c), dtype=c.dtype, device=c.device)
        shares = torch.linalg.inv(c + calm).sum(1)
        self.weights.copy_(shares / shares.sum())


class Difficulty(EpochStatistics):
    """Sorts the training images by how wrong a judge is about them (cross-entropy), into strata of equal size.

    A judge that does not learn is asked ``once``. Source: Amara et al. 2022 (CES-KD); that the ranking goes over the whole
    training split is our reading.
    """

    split = "train"

    def __init__(self, judge: Tap, count: int, *, once: bool) -> None:
        super().__init__()
        self.reads, self.count, self.once = (judge,), count, once
        self.strata = torch.zeros(0, dtype=torch.long)
        self.gathered: list[Tensor] = []

    def begin(self) -> None:
        self.gathered.clear()

    def see(self, tensors: Sequence[Tensor], batch: Batch) -> None:
        self.gathered.append(cross_entropies(tensors[0], batch.labels))

    def conclude(self) -> None:
        self.strata = strata(torch.cat(self.gathered), self.count)
        self.begin()

    def of(self, ids: Tensor) -> Tensor:
        """The stratum 0..count-1 of images by their ids; before the first look all are in the first. (batch,) -> (batch,)"""
        self.strata = self.strata.to(ids.device)
        return self.strata[ids] if len(self.strata) else torch.zeros_like(ids)

    def get_extra_state(self) -> Tensor:
        return self.strata

    def set_extra_state(self, state: Tensor) -> None:
        self.strata = state
