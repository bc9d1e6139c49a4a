"""Float starts: one for each seed, shared where it is the same; those that are not finite are neither kept nor used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qkd.engine.device import Machine
from qkd.engine.events import Event, PretrainingStarted
from qkd.errors import NetworkError, TrainingError
from qkd.networks import NETWORKS
from qkd.networks.start_weights import load_checkpoint
from qkd.pipeline import pretrain
from qkd.pipeline.allocate_bits import allocate_bits
from qkd.pipeline.train import train_recipe
from qkd.storage.cache import cache_folder
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import COPIES, TINY, recipe_in

ONE = Machine("cpu", threads=1)
ALONE: dict[str, Any] = {"method": {"name": "qat"}, "teachers": {}, "train": {"epochs": 1, "rate": 0.05}}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_start_that_breaks_in_its_last_step_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    train = pretrain.FloatStarts._train

    def broken(self: Any, network: Any, *more: Any) -> None:
        train(self, network, *more)
        network.fc.weight.data[0, 0] = float("nan")

    monkeypatch.setattr(pretrain.FloatStarts, "_train", broken)
    with refused(TrainingError, "training.float-start-not-finite"):
        train_recipe(recipe_in(tmp_path, **ALONE), Run.create(tmp_path / "run"), ONE)
    assert not list((cache_folder() / "float").glob("*.safetensors"))


def test_a_cached_start_that_is_not_finite_is_made_again(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, **ALONE)
    first = train_recipe(recipe, Run.create(tmp_path / "first"), ONE)
    (kept,) = (cache_folder() / "float").glob("*.safetensors")
    good = load_file(kept)
    save_file({**good, "fc.bias": torch.full_like(good["fc.bias"], float("inf"))}, kept)
    again = train_recipe(recipe, Run.create(tmp_path / "again"), ONE)
    assert again.float_top1 == first.float_top1
    assert all(torch.equal(tensor, good[name]) for name, tensor in load_file(kept).items())


def test_starts_of_other_precisions_are_others(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, **ALONE)
    for number, precision in enumerate(("fp32", "bf16", "fp32"), 1):
        machine = Machine("cpu", threads=1, precision=precision)
        train_recipe(recipe, Run.create(tmp_path / precision), machine, max_steps=1)
        assert len(list((cache_folder() / "float").glob("*.safetensors"))) == min(number, 2)


def test_an_averaged_start_is_the_average(tmp_path: Path) -> None:
    settings = {"epochs": 1, "rate": 0.1}
    for ema in (None, 0.9):
        recipe = recipe_in(tmp_path, **ALONE | {"pretrain": {**settings, "ema": ema}})
        train_recipe(recipe, Run.create(tmp_path / f"ema-{ema}"), ONE, max_steps=1)
    one, two = (load_file(path) for path in (cache_folder() / "float").glob("*.safetensors"))
    apart = [name for name in one if not torch.equal(one[name], two[name])]
    assert "conv1.weight" in apart and "fc.bias" in apart


def trained_starts(folder: Path, name: str, **changes: Any) -> list[str]:
    """Which networks of a recipe train a float start, in a run that takes one step; the others find it in the cache."""
    told: list[Event] = []
    recipe = recipe_in(folder, **changes)
    train_recipe(recipe, Run.create(folder / name), ONE, max_steps=1, listen=told.append)
    return [event.part for event in told if isinstance(event, PretrainingStarted)]


def test_every_network_has_a_float_start_of_its_own_unless_its_seed_is_the_same(tmp_path: Path) -> None:
    assert trained_starts(tmp_path, "default") == ["student", "eight", "four"]
    assert trained_starts(tmp_path, "again") == []
    assert trained_starts(tmp_path, "same", teachers=COPIES) == []
    assert trained_starts(tmp_path, "other", teachers={"four": COPIES["four"], "nine": TINY["teachers"]["eight"]}) == [
        "nine"
    ]
    assert len(list((cache_folder() / "float").glob("*.safetensors"))) == 4


def test_a_seed_is_that_of_weights_order_and_augmentation(tmp_path: Path) -> None:
    """A network of seed 3 begins as the student of a recipe of seed 3 does, by whatever name."""
    three = {"four": {**TINY["teachers"]["four"], "seed": 3}}
    assert trained_starts(tmp_path, "teacher", teachers=three) == ["student", "four"]
    assert trained_starts(tmp_path, "recipe", **ALONE, seed=3) == []
    assert trained_starts(tmp_path, "student", **ALONE | {"student": {**TINY["student"], "seed": 3}}) == []
    allocate_bits(recipe_in(tmp_path, **ALONE | {"student": {**TINY["student"], "seed": 3}}), 3.0, machine=ONE)
    assert len(list((cache_folder() / "float").glob("*.safetensors"))) == 2


def test_the_seed_orders_the_images_of_a_float_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, train = list[tuple[int, int]](), pretrain.train

    def watched(training: Any, **more: Any) -> Any:
        seeds.append((training.seed, torch.initial_seed()))
        return train(training, **more)

    monkeypatch.setattr(pretrain, "train", watched)
    recipe = recipe_in(tmp_path)
    train_recipe(recipe, Run.create(tmp_path / "run"), ONE, max_steps=1)
    assert seeds == [(recipe.seed_of(part),) * 2 for part in recipe.networks]
    assert len(set(seeds)) == 3


def test_weights_older_than_the_count_of_batches_load(tmp_path: Path, refused: Refused) -> None:
    network, other = NETWORKS["resnet8"](classes=4, width=4), NETWORKS["resnet8"](classes=4, width=4)
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "old.safetensors")
    load_checkpoint(other, tmp_path / "old.safetensors")
    assert torch.equal(other.conv1.weight, network.conv1.weight)
    del state["fc.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with refused(NetworkError, "start_from.other-tensors"):
        load_checkpoint(other, tmp_path / "less.safetensors")
