"""Searches settings with Optuna: one run for each proposal, scored on the validation split; a search can be continued."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkd.errors import UsageError
from qkd.options import require_extra
from qkd.pipeline.sweep import Point, folder_name

STUDY, NAME = "search.db", "qkd"
SCORE = "val_top1"  # not the test split: it must not choose what it measures
Train = Callable[[Point], str | None]  # -> the reason of a failure, None for none


@dataclass(frozen=True)
class Range:
    """The values of a setting: numbers from ``low`` to ``high``, or one of several words.

    ``log``: on a logarithmic scale. ``whole``: whole numbers only.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    words: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The first and the last value, or all words."""
        numbers = (int(self.low), int(self.high)) if self.whole else (self.low, self.high)
        return self.words or numbers

    def written(self, value: Any) -> str:
        """``key=value`` as an override takes it, with six digits."""
        return f"{self.key}={value:.6g}" if isinstance(value, float) else f"{self.key}={value}"


def parse_range(text: str) -> Range:
    """``a.b=0.01:1:log``, ``a.b=1:8`` (whole numbers) or ``a.b=sgd,adamw``. Raises UsageError."""
    key, sign, values = text.partition("=")
    possible = "KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE"
    wrong = UsageError(f"--search {text}: expected {possible}", key="search.no-range")
    if not sign or not key.strip() or not values.strip():
        raise wrong
    words = values.split(":")
    if len(words) == 1:
        choices = tuple(value.strip() for value in values.split(","))
        if not all(choices) or len(set(choices)) < max(2, len(choices)):
            raise wrong
        return Range(key.strip(), words=choices)
    try:
        low, high = (float(word) for word in words[:2])
    except ValueError as error:
        raise wrong from error
    whole = all(word.strip().lstrip("+-").isdigit() for word in words[:2])
    if len(words) > 3 or (len(words) == 3 and words[2] != "log") or not low < high or (len(words) == 3 and low <= 0):
        raise wrong
    return Range(key.strip(), low, high, len(words) == 3, whole)


def run_search(
    out: Path,
    ranges: Sequence[Range],
    trials: int,
    train: Train,
    *,
    check: Callable[[Point], object],
    jobs: int = 1,
    listen: Callable[[Point, str], None] = lambda point, state: None,
) -> tuple[list[Point], dict[str, str]]:
    """Train proposals until there are ``trials``, with those of earlier calls on the same folder.

    -> the points that were trained, the best first, and the reason of each failure, by name. A proposal whose run was
    interrupted is trained first. ``check`` raises what is wrong with a point; it is called with the ends of every range before
    anything is trained. Raises UsageError where Optuna is not installed, or the folder holds another search.
    """
    for end in (0, -1):
        changes = tuple(each.written(each.ends[end]) for each in ranges)
        check(Point(out / folder_name(changes), changes))
    out.mkdir(parents=True, exist_ok=True)
    study = _Study(out, ranges)
    failures: dict[str, str] = {}
    turn, running = threading.Lock(), dict[str, threading.Lock]()
    left = max(0, trials - study.finished)

    def one(number: int) -> None:
        with turn:
            trial, point = study.ask()
            busy = running.setdefault(point.name, threading.Lock())
        with busy:  # the same values may be proposed twice
            failure = None if point.finished else train(point)
        with turn:
            score = None if failure else point.result().val_top1
            if score is None:
                failures[point.name] = failure or f"no {SCORE}: it ended before the first validation (--max-steps)"
            study.tell(trial, score)
            listen(point, f"{SCORE} {score:.2f}" if score is not None else f"failed: {failures[point.name]}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(left)))
    return study.points(), failures


class _Study:
    """The study of Optuna that a folder holds."""

    def __init__(self, out: Path, ranges: Sequence[Range]) -> None:
        self.optuna = require_extra("optuna", "--search")
        self.out, self.ranges = out, ranges
        self.space = {each.key: self._distribution(each) for each in ranges}
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        storage = f"sqlite:///{(out / STUDY).resolve()}"
        self.study = self.optuna.create_study(
            study_name=NAME, storage=storage, load_if_exists=True, direction="maximize"
        )
        self._continue()

    def _continue(self) -> None:
        """Take over the trials of an earlier search. Raises UsageError where it had other ranges."""
        before = self.study.trials
        # another seed than before, so that a continued search proposes something new
        self.study.sampler = self.optuna.samplers.TPESampler(seed=len(before))
        if any(trial.distributions not in ({}, self.space) for trial in before):
            raise UsageError(
                f"{self.out}: holds a search over other ranges; choose another folder with --out",
                key="search.other-ranges",
            )
        states = self.optuna.trial.TrialState
        for trial in before:
            if trial.state == states.RUNNING:  # its process has ended
                self.study.tell(trial.number, state=states.FAIL)
                if trial.params:
                    self.study.enqueue_trial(trial.params, skip_if_exists=False)

    def _distribution(self, each: Range) -> Any:
        kinds = self.optuna.distributions
        if each.words:
            return kinds.CategoricalDistribution(each.words)
        if each.whole:
            return kinds.IntDistribution(int(each.low), int(each.high), log=each.log)
        return kinds.FloatDistribution(each.low, each.high, log=each.log)

    @property
    def finished(self) -> int:
        return len(self._completed())

    def _completed(self) -> list[Any]:
        return [t for t in self.study.trials if t.state == self.optuna.trial.TrialState.COMPLETE]

    def ask(self) -> tuple[Any, Point]:
        trial = self.study.ask(self.space)
        return trial, self._point(trial.params)

    def tell(self, trial: Any, score: float | None) -> None:
        state = None if score is not None else self.optuna.trial.TrialState.FAIL
        self.study.tell(trial, score, state=state)

    def points(self) -> list[Point]:
        """The points that were trained, the best first."""
        ordered = sorted(self._completed(), key=lambda trial: -trial.value)
        return list(dict.fromkeys(self._point(trial.params) for trial in ordered))

    def _point(self, params: dict[str, Any]) -> Point:
        changes = tuple(each.written(params[each.key]) for each in self.ranges)
        return Point(self.out / folder_name(changes), changes)
