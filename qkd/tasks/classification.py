"""Scores of class logits."""

from __future__ import annotations

import torch
from torch import Tensor


def top1(scores: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is the label's, in percent."""
    return 100 * (scores.argmax(1) == labels.cpu()).double().mean().item()


def ece(scores: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error, 0..1: how far confidence is from accuracy, in bins of equal width of confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    confidence, chosen = scores.double().softmax(1).max(1)
    right = (chosen == labels.cpu()).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return gaps.abs().sum().item() / len(labels)
