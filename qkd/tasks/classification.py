"""Scores of class logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


def top1(scores: Array, labels: Array) -> float:
    """The share of images whose largest logit is the label's, in percent, for logits (N, classes) and labels (N,).

    Arrays and tensors give the same number.
    """
    chosen, wanted = (each.cpu().numpy() if isinstance(each, Tensor) else each for each in (scores.argmax(1), labels))
    return float(100 * (chosen == np.asarray(wanted)).mean())


def share_right(chosen: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of classes that were chosen already, (N,) each, in percent."""
    return float(100 * (chosen == labels).mean())


def ece(scores: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error, 0..1: how far confidence is from accuracy, in bins of equal width of confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    confidence, chosen = scores.double().softmax(1).max(1)
    right = (chosen == labels.cpu()).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return gaps.abs().sum().item() / len(labels)
