"""Augmentation of batches: cutout, mixup, cutmix and RandAugment, and the methods that take mixed labels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.data import Batch, ExtraAugmentations
from qkd.data.augment import MixParameters, cut_out, mix, rand_augment
from qkd.engine.device import Machine
from qkd.errors import PlanError, RecipeError
from qkd.methods import METHODS
from qkd.pipeline.train import train_recipe
from qkd.storage.run import Run
from qkd.tasks.spec import DataSpec
from tests.support.refusals import Refused
from tests.support.tiny_data import ramp, same
from tests.support.tiny_runs import TINY, losses, recipe_in

HARD = {"cmtkd", "kdcl", "ffcl"}  # their targets need the true class of each image


def drawn(count: int = 32, augment: bool = False, **more: Any) -> list[Batch]:
    extra = ExtraAugmentations(
        **{name: more.pop(name) for name in tuple(more) if name in ExtraAugmentations.__dataclass_fields__}
    )
    return list(ramp(count).train_batches(8, **{"seed": 3, "augment": augment, "extra": extra, **more}))


@pytest.mark.parametrize("change", [{"cutout": 6}, {"randaugment": 9}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_what_is_drawn_depends_on_the_seed_alone(change: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    first, again = drawn(**change, augment=True), drawn(**change, augment=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert same(drawn(**change, augment=True, skip=2), first[2:])
    plain = drawn(augment=True)
    assert [batch.ids.tolist() for batch in first] == [batch.ids.tolist() for batch in plain]
    assert not torch.equal(first[0].images, plain[0].images)
    two = drawn(**change, augment=True, num_views=2)
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(first, two, strict=True)
    )
    assert not torch.equal(two[0].images, two[0].others[0])
    assert not same(first, drawn(**change, augment=True, seed=4))


def test_evaluation_is_never_augmented() -> None:
    data = ramp(32)
    assert data.augment != "none"
    batches = list(data.batches("train", 8))
    assert torch.equal(torch.cat([batch.images for batch in batches]), data.normalize(data.train.images))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.train.labels)
    assert not any(batch.others for batch in batches)


def test_cutout_fills_one_square_with_the_mean_colour() -> None:
    images = torch.ones(3, 2, 8, 8)
    cut = cut_out(images, torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.25, 1.0]]), 4)
    assert (cut == 0).sum((1, 2, 3)).tolist() == [2 * 16, 2 * 4, 2 * 8]
    assert torch.equal(cut[0, 0, 2:6, 2:6], torch.zeros(4, 4))
    assert cut[1, 0, :2, :2].sum() == 0
    for plain, changed in zip(drawn(), drawn(cutout=4), strict=True):
        different = plain.images != changed.images
        assert all(3 * 4 <= count <= 3 * 16 for count in different.flatten(1).sum(1).tolist())
        assert (changed.images[different] == 0).all()


def test_mixing_is_what_its_shares_say() -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    share, centre = torch.tensor([1.0, 0.25, 0.75, 0.75]), torch.full((4, 2), 0.5)
    [views], shares = mix([images], labels, MixParameters(share, torch.tensor([False, False, True, False]), centre), 3)
    assert torch.equal(views[0], images[0])
    assert torch.allclose(views[1], 0.25 * images[1] + 0.75 * images[2])
    box = views[2] != images[2]
    assert box.sum() == 3 * 16  # a quarter of the area
    assert torch.equal(views[2][box], images[1][box])
    expected = torch.tensor([[1, 0, 0], [0, 0.25, 0.75], [0, 0.25, 0.75], [1, 0, 0]])
    assert torch.allclose(shares, expected)


def test_labels_of_mixed_batches_are_shares_that_sum_to_one() -> None:
    for change in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        for batch in drawn(**change):
            assert batch.labels.shape == (8, 2)
            assert torch.allclose(batch.labels.sum(1), torch.ones(8))
            assert len(batch.labels.unique()) > 2
    boxed = drawn(64, cutmix=1.0)[0]
    plain = drawn(64)[0]
    whole = (boxed.images == plain.images).float().mean((1, 2, 3))
    assert 0.2 < whole.mean() < 0.8  # pixels are of one image or the other


def test_randaugment_changes_each_image_by_its_own_seed() -> None:
    images = ramp(6).test.images
    assert isinstance(images, torch.Tensor)
    whole = rand_augment(images, torch.arange(6), 9)
    assert whole.dtype == torch.uint8
    assert torch.equal(rand_augment(images[2:4], torch.arange(2, 4), 9), whole[2:4])
    assert sum(bool((a != b).any()) for a, b in zip(whole, images, strict=True)) >= 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_mixed_labels_or_says_that_it_cannot(method: str) -> None:
    hard = pytest.raises(PlanError, match="it needs one label for each image; train.mixup and train.cutmix make shares")
    recipe = recipes.load(f"digits_{method}_w2a2", ["train.mixup=0.2"])
    with hard if method in HARD else contextlib.nullcontext():
        assert assemble(recipe, DataSpec((1, 16, 16), 10)).plan.phases


def test_a_run_with_all_of_them_learns_and_resumes(tmp_path: Path) -> None:
    settings = {"epochs": 2, "rate": 0.05, "cutout": 4, "randaugment": 5, "mixup": 0.2, "cutmix": 1.0, "accumulate": 2}
    recipe = recipe_in(tmp_path, method={"name": "kd"}, train=settings)
    whole, short = Run.create(tmp_path / "whole"), Run.create(tmp_path / "short")
    one = Machine("cpu", threads=1)
    train_recipe(recipe, whole, one)
    train_recipe(recipe, short, one, max_steps=5)
    train_recipe(recipe, short, one, resume=True)
    assert losses(short) == losses(whole)
    plain = Run.create(tmp_path / "plain")
    train_recipe(
        recipe_in(tmp_path, method={"name": "kd"}, train={"epochs": 2, "rate": 0.05, "accumulate": 2}), plain, one
    )
    assert losses(plain)[1:] != losses(whole)[1:]


@pytest.mark.parametrize("setting", [{"mixup": 0}, {"cutout": 0}, {"randaugment": 31}])
def test_settings_out_of_range_are_refused(tmp_path: Path, refused: Refused, setting: dict[str, int]) -> None:
    with refused(RecipeError, "recipe"):
        recipe_in(tmp_path, train={**TINY["train"], **setting})
