"""Scores of class logits."""

from __future__ import annotations

import numpy as np
import torch

from qkd.tasks.classification import top1


def test_top1_of_arrays_and_tensors_is_the_same_number() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 3, 7, 360, 1001):
        scores, labels = generator.normal(size=(count, 4)).astype(np.float32), generator.integers(0, 4, count)
        expected = 100 * sum(int(np.argmax(row) == label) for row, label in zip(scores, labels, strict=True)) / count
        found = top1(scores, labels)
        assert (
            found == top1(torch.from_numpy(scores), torch.from_numpy(labels)) == top1(torch.from_numpy(scores), labels)
        )
        assert abs(found - expected) < 1e-9


def test_top1_takes_the_first_of_equal_logits() -> None:
    assert top1(np.ones((2, 3)), np.array([0, 1])) == top1(torch.ones(2, 3), torch.tensor([0, 1])) == 50
