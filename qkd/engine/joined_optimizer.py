"""Several optimizers as one, for a step whose learners do not all move alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class JoinedOptimizer(torch.optim.Optimizer):
    """Steps all of several optimizers; its groups are theirs, its state a list of theirs under ``joined``."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.joined = list(optimizers)
        super().__init__(self._groups(), {"fused": None})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.joined for group in optimizer.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for optimizer in self.joined:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"joined": [optimizer.state_dict() for optimizer in self.joined]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.joined, state_dict["joined"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = self._groups()  # loading puts new ones in their place
