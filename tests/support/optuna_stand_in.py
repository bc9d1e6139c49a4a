"""As much of Optuna as is used, for where it is not installed."""

from __future__ import annotations

import types
from typing import Any


class Sampler:
    def __init__(self, seed: int) -> None:
        self.seed = seed


class StandIn:
    """As much of Optuna as is used: an evenly spread proposal, and a study that is kept in a file."""

    def __init__(self) -> None:
        kind = lambda *names: lambda *values, log=False: (*values, log)  # noqa: E731
        self.distributions = types.SimpleNamespace(
            FloatDistribution=kind(), IntDistribution=kind(), CategoricalDistribution=lambda words: words
        )
        self.logging = types.SimpleNamespace(WARNING=0, set_verbosity=lambda level: None)
        self.samplers = types.SimpleNamespace(TPESampler=Sampler)
        self.trial = types.SimpleNamespace(TrialState=types.SimpleNamespace(RUNNING=0, COMPLETE=1, FAIL=3))
        self.studies: dict[str, StandIn] = {}
        self.trials: list[Any] = []
        self.waiting: list[dict[str, Any]] = []
        self.sampler: Any = None

    def create_study(self, storage: str, **keywords: Any) -> StandIn:
        return self.studies.setdefault(storage, StandIn())

    def ask(self, space: dict[str, Any]) -> Any:
        number = len(self.trials)
        drawn = {key: values[number % 2] for key, values in space.items()}
        params = self.waiting.pop(0) if self.waiting else drawn
        self.trials.append(
            types.SimpleNamespace(number=number, params=params, state=0, value=None, distributions=space)
        )
        return self.trials[-1]

    def tell(self, trial: Any, value: float | None = None, state: int | None = None) -> None:
        found = self.trials[trial if isinstance(trial, int) else trial.number]
        found.value, found.state = value, 1 if state is None else state

    def enqueue_trial(self, params: dict[str, Any], skip_if_exists: bool) -> None:
        self.waiting.append(params)
