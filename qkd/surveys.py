"""Survey: what a method finds out before each epoch, on images that nobody learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.taps import Tap


class Survey(nn.Module, ABC):
    """Sees the validation split once before each epoch, everybody in evaluation mode, without gradients.

    What it finds is kept in buffers, so that a resumed run knows it too. Targets and exchanges read it from there.
    """

    reads: tuple[Tap, ...] = ()

    @abstractmethod
    def begin(self) -> None:
        """The split begins: forget what was gathered the last time."""

    @abstractmethod
    def see(self, tensors: Sequence[Tensor], labels: Tensor) -> None:
        """One batch: the tensors of ``reads`` and the labels."""

    @abstractmethod
    def conclude(self) -> None:
        """The split is over: put the finding into its buffer."""


class Errors(Survey):
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

    def see(self, tensors: Sequence[Tensor], labels: Tensor) -> None:
        right = F.one_hot(labels, tensors[0].shape[1])
        errors = torch.stack([(logits.float().softmax(1) - right).flatten() for logits in tensors])
        self.gathered += errors @ errors.t()  # a common factor does not count

    def conclude(self) -> None:
        c = self.gathered.double()
        calm = 0.01 * c.diagonal().mean().clamp(min=1e-12) * torch.eye(len(c), dtype=c.dtype, device=c.device)
        shares = torch.linalg.inv(c + calm).sum(1)
        self.weights.copy_(shares / shares.sum())
