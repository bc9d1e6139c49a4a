"""Two classifiers on the same images: McNemar's exact test, and the standard error of the difference of their accuracies."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Paired(NamedTuple):
    """On how many of so many images only the first, and only the second of two classifiers is right."""

    only_first: int
    only_second: int
    images: int

    @property
    def difference(self) -> float:
        """Top-1 of the second minus that of the first, in points."""
        return 100 * (self.only_second - self.only_first) / self.images

    @property
    def standard_error(self) -> float:
        """Of the difference, in points: images that both or neither get right add nothing to it."""
        mean = self.difference / 100
        variance = (self.only_first + self.only_second) / self.images - mean**2
        return 100 * math.sqrt(max(variance, 0.0) / self.images)

    @property
    def p(self) -> float:
        """See `mcnemar`."""
        return mcnemar(self.only_first, self.only_second)


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Counts of two classifiers for how often each got each image right, (N,) bool or int each.

    Several runs of each may be counted together: an image then speaks for the one that got it right more often.
    """
    more = second.astype(np.int64) - first.astype(np.int64)
    return Paired(int((more < 0).sum()), int((more > 0).sum()), len(more))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test: twice the tail of the binomial distribution with probability 1/2.

    How likely a split of the discordant images at least as uneven is where both are equally good; 1 without such images.
    Source: McNemar, Psychometrika 12 (1947); exact form: Mosteller, Biometrics 8 (1952).
    """
    count = only_first + only_second
    logs = (
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2)
        for i in range(min(only_first, only_second) + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
