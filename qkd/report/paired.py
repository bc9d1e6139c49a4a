"""Compares runs image by image: each with the first one, and groups of runs in pairs of equal seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from qkd.errors import RunError
from qkd.report.run_data import RunData
from qkd.storage.predictions import PairedRuns, Predictions, read_predictions
from qkd.tasks.paired import paired

Group = Sequence[RunData]


def pair_runs(found: Sequence[RunData]) -> list[PairedRuns]:
    """Every run but the first beside the first."""
    return _beside_first([[run_data] for run_data in found], [{None: run_data} for run_data in found])


def pair_groups(groups: Sequence[Group]) -> list[PairedRuns]:
    """Every group of runs but the first beside the first, in pairs of equal seeds; a seed of only one of them is left out."""
    return _beside_first(groups, [{_seed(run_data): run_data for run_data in group} for group in groups])


def _seed(run_data: RunData) -> int | None:
    seed = run_data.result.seed
    return seed if seed is not None else run_data.recipe.get("seed")


def _beside_first(groups: Sequence[Group], by_seed: Sequence[Mapping[int | None, RunData]]) -> list[PairedRuns]:
    if len(groups) < 2:
        return []
    known = {run_data.run.folder: _predictions(run_data) for group in groups for run_data in group}
    names = [tuple(str(run_data.run.folder) for run_data in group) for group in groups]
    pairs = []
    for runs, own in zip(names[1:], by_seed[1:], strict=True):
        seeds = tuple(seed for seed in own if seed in by_seed[0])
        sides = [(known[by_seed[0][seed].run.folder], known[own[seed].run.folder]) for seed in seeds]
        pairs.append(_pair(runs, names[0], () if seeds == (None,) else seeds, sides))
    return pairs


def _predictions(run_data: RunData) -> Predictions | str:
    """The predictions of a run, or why there are none."""
    try:
        return read_predictions(run_data.run)
    except RunError as error:
        return str(error)


def _pair(
    runs: tuple[str, ...],
    beside: tuple[str, ...],
    seeds: tuple[int | None, ...],
    sides: Sequence[tuple[Predictions | str, Predictions | str]],
) -> PairedRuns:
    """All pairs of two groups as one comparison, or as the reason why they cannot be compared."""
    first = [one for one, _ in sides if isinstance(one, Predictions)]
    second = [other for _, other in sides if isinstance(other, Predictions)]
    reason = _why_not(sides, first, second)
    if reason:
        return PairedRuns(runs=runs, beside=beside, seeds=seeds or None, why_not=reason)
    differences = [paired(one.right, other.right).difference for one, other in zip(first, second, strict=True)]
    counts = [
        np.sum([each.right for each in side], axis=0) for side in (first, second)
    ]  # how often each image is right
    together = paired(*counts)
    return PairedRuns(
        runs=runs,
        beside=beside,
        seeds=seeds or None,
        images=together.images,
        difference=round(statistics.fmean(differences), 4),
        std=round(statistics.stdev(differences), 4) if len(differences) > 1 else None,
        only_runs=together.only_second,
        only_beside=together.only_first,
        p=together.p,
    )


def _why_not(
    sides: Sequence[tuple[Predictions | str, Predictions | str]],
    first: Sequence[Predictions],
    second: Sequence[Predictions],
) -> str:
    """Why sides cannot be compared; empty where they can."""
    missing = [each for pair in sides for each in pair if isinstance(each, str)]
    if missing:
        return missing[0]
    if not sides:
        return "no seed is in both groups"
    return "" if len({each.test_set for each in (*first, *second)}) == 1 else "they were tested on other images"
