"""McNemar's test and the paired standard error, against exact fractions, published figures and plain formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from qkd.tasks.paired import Paired, mcnemar, paired


def exact(only_first: int, only_second: int) -> float:
    count, least = only_first + only_second, min(only_first, only_second)
    tail = Fraction(sum(math.comb(count, i) for i in range(least + 1)), 2**count)
    return float(min(Fraction(1), 2 * tail))


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (3, 3), (0, 6), (2, 10), (59, 121), (480, 400), (1, 2000)])
def test_p_is_that_of_exact_fractions_and_the_same_both_ways(counts: tuple[int, int]) -> None:
    expected = exact(*counts)
    assert mcnemar(*counts) == mcnemar(*counts[::-1]) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_p_is_as_published() -> None:
    assert mcnemar(0, 6) == pytest.approx(0.03125)  # 2 / 2^6
    assert mcnemar(2, 10) == pytest.approx(158 / 4096)  # 2 (1 + 12 + 66) / 2^12
    assert mcnemar(59, 121) == pytest.approx(4.4344e-06, rel=1e-4)  # the example of statsmodels' mcnemar


def test_many_discordant_images_do_not_overflow() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 <= mcnemar(0, 50_000) < 1e-300
    # close to the normal approximation with continuity correction: z = (|b - c| - 1) / sqrt(b + c)
    assert mcnemar(9_800, 10_200) == pytest.approx(math.erfc(399 / math.sqrt(20_000) / math.sqrt(2)), rel=1e-3)


def test_counts_difference_and_error_are_those_of_the_images() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random(500) < 0.7, draw.random(500) < 0.8
    found, each = paired(first, second), second.astype(float) - first.astype(float)
    assert found == Paired(int((first & ~second).sum()), int((second & ~first).sum()), 500)
    assert found.difference == pytest.approx(100 * each.mean())
    assert found.standard_error == pytest.approx(100 * each.std() / math.sqrt(500))
    assert found.p == exact(found.only_first, found.only_second) or found.p == pytest.approx(exact(*found[:2]))


def test_runs_counted_together_speak_once_for_an_image() -> None:
    # right in so many of three runs; images 1 and 4 are right more often in the second, image 2 in the first
    assert paired(np.array([3, 0, 2, 1, 0]), np.array([3, 3, 1, 1, 1])) == Paired(1, 2, 5)


def test_equal_classifiers_have_no_difference_and_no_error() -> None:
    right = np.array([True, False, True])
    found = paired(right, right)
    assert (found.difference, found.standard_error, found.p) == (0.0, 0.0, 1.0)
