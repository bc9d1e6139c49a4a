"""A training that keeps what one process of several saw: the deltas it estimated, its weights behind every epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qkd import recipe as recipes
from qkd.engine import ewgs_delta
from qkd.engine.device import Machine, is_first
from qkd.engine.loop import Loop
from qkd.pipeline.train import train_recipe
from qkd.quantizers import hessian
from qkd.storage.run import Run

ONE = Machine("cpu", threads=1)


def watched() -> None:
    """Train in this folder, and keep what this process had: deltas as it found them, its parts behind every epoch."""
    kind = os.environ.get("RANK", "alone")
    found: dict[str, list[Any]] = {"deltas": [], "parts": []}
    estimate, keep = ewgs_delta.estimate_deltas, Loop._save

    def estimated(*arguments: Any) -> dict[str, float]:
        found["deltas"].append(estimate(*arguments))
        return found["deltas"][-1]

    def kept(self: Loop, running: Any) -> None:
        found["parts"].append({name: tensor.clone() for name, tensor in self.training.ensemble.state_dict().items()})
        keep(self, running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hessian, "PROBES", 1)
        patch.setattr(ewgs_delta, "BATCHES", 1)
        patch.setattr(ewgs_delta, "EVERY", 1)
        patch.setattr(ewgs_delta, "estimate_deltas", estimated)
        patch.setattr(Loop, "_save", kept)
        train_recipe(recipes.load("tiny.yaml"), Run.create(Path(f"run-{kind}")) if is_first() else None, ONE)
    torch.save(found, f"{kind}.pt")
