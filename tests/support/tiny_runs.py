"""A recipe that trains in a second, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qkd import recipe as recipes
from qkd.engine.device import Machine
from qkd.pipeline.train import train_recipe
from qkd.storage.results import TrainResult
from qkd.storage.run import Run

TINY: dict[str, Any] = {
    "method": {"name": "cmtkd"},
    "student": {"build": "resnet8", "width": 4, "quantize": "w2a2"},
    "teachers": {
        "four": {"build": "resnet8", "width": 4, "quantize": "w4a4"},
        "eight": {"build": "resnet8", "width": 4, "quantize": "w8a8"},
    },
    "match": ["layer1", "layer2"],
    "data": {"name": "fake", "batch": 16, "size": 16, "train": 64, "test": 32, "classes": 4},
    "pretrain": {"epochs": 1},
    "train": {"epochs": 3, "rate": 0.05},
}
COPIES: dict[str, Any] = {name: {**entry, "seed": "same"} for name, entry in TINY["teachers"].items()}
"""Its teachers as copies of the student, in all but their bits."""


def recipe_in(folder: Path, **changes: Any) -> Any:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return recipes.load(path)


def run_of(folder: Path, recipe: Any, name: str = "run", **more: Any) -> tuple[Run, TrainResult]:
    run = Run.create(folder / name)
    return run, train_recipe(recipe, run, Machine("cpu", threads=1), **more)


def losses(run: Run) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if k.startswith(("train/", "val/", "importance/"))} for line in run.metrics()
    ]


class Stop(Exception):
    pass


ALONE: dict[str, Any] = {"method": {"name": "qat"}, "teachers": {}, "match": []}
