"""The loop: the same seed gives the same run, a resumed run equals the unbroken one, nobody but the learners moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from qkd import recipe as recipes
from qkd.engine.device import Machine
from qkd.engine.events import EpochEnded, Event, FloatCached, PretrainingStarted
from qkd.errors import RunError, TrainingError
from qkd.pipeline.reload import reload_product
from qkd.pipeline.resume import refuse_changed
from qkd.pipeline.train import train_recipe
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import COPIES, TINY, Stop, losses, recipe_in, run_of


def test_same_seed_same_losses_to_the_last_bit(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    (one, first), (two, second) = run_of(tmp_path, recipe), run_of(tmp_path, recipe)
    assert one.folder.name == "run"
    assert two.folder.name == "run-2"
    assert losses(one) == losses(two)
    assert first.top1 == second.top1
    other, _ = run_of(tmp_path, recipe_in(tmp_path, seed=1))
    assert losses(one) != losses(other)


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path, after: int) -> None:
    recipe = recipe_in(tmp_path)
    whole, _ = run_of(tmp_path, recipe, "whole")

    def break_off(event: Event) -> None:
        if isinstance(event, EpochEnded) and (event.metrics["phase"], event.metrics["epoch"]) == ("train", after):
            raise Stop

    broken = Run.create(tmp_path / "broken")
    with pytest.raises(Stop):
        train_recipe(recipe, broken, Machine("cpu", threads=1), listen=break_off)
    train_recipe(recipe, broken, Machine("cpu", threads=1), resume=True)
    assert losses(broken) == losses(whole)
    expected = whole.load_product()
    found = broken.load_product()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert found.keys() == expected.keys()


def test_a_changed_recipe_is_refused_by_key(tmp_path: Path, refused: Refused) -> None:
    run, _ = run_of(tmp_path, recipe_in(tmp_path), max_steps=1)
    changed = recipe_in(tmp_path, train={"epochs": 4, "rate": 0.05})
    with refused(RunError, "run.recipe-changed"):
        refuse_changed(run, changed)


def test_teachers_in_another_order_are_another_recipe(tmp_path: Path, refused: Refused) -> None:
    run, _ = run_of(tmp_path, recipe_in(tmp_path, method={"name": "dgkd"}), max_steps=1)
    refuse_changed(run, recipe_in(tmp_path, method={"name": "dgkd"}))
    assert list(TINY["teachers"]) == ["four", "eight"]  # recipe_in writes keys in the order of the alphabet
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**TINY, "method": {"name": "dgkd"}}, sort_keys=False))
    with refused(RunError, "run.recipe-changed"):
        refuse_changed(run, recipes.load(tmp_path / "other.yaml"))


def test_a_finished_run_comes_back_as_its_product(tmp_path: Path) -> None:
    run, result = run_of(tmp_path, recipe_in(tmp_path))
    finished = reload_product(run)
    state = run.load_product()
    assert all(torch.equal(state[name], tensor) for name, tensor in finished.product.state_dict().items())
    from qkd.assembly.inputs import load_data
    from qkd.engine.metrics import test_top1

    assert test_top1(finished.product, load_data(finished.recipe), 16, "cpu") == pytest.approx(result.top1)


def test_frozen_teachers_stay_bitwise_as_they_were(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, method={"name": "cmtkd", "teachers": "frozen"})
    run, _ = run_of(tmp_path, recipe)
    first = Run.create(tmp_path / "first")
    train_recipe(recipe, first, Machine("cpu", threads=1), max_steps=1)
    a, b = (r.checkpoints.load("last")["parts"] for r in (run, first))
    for name in a:
        same = torch.equal(a[name], b[name])
        if ".four." in name or ".eight." in name:
            assert same, name
    assert not torch.equal(a["networks.student.network.fc.weight"], b["networks.student.network.fc.weight"])


def test_a_loss_that_is_not_finite_names_term_and_batch(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, train={"epochs": 2, "rate": 1e30})
    with pytest.raises(TrainingError, match=r"phase train, epoch \d, batch \d: the loss \S+ is nan"):
        run_of(tmp_path, recipe)


def test_metrics_hold_losses_importance_and_gradient_shares(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, recipe_in(tmp_path))
    lines = [line for line in run.metrics() if line["phase"] == "train"]
    assert len(lines) == 3
    assert {"train/loss/label/student", "importance/layer1/four", "images_per_second", "val/top1"} <= lines[-1].keys()
    shares = [v for k, v in lines[0].items() if k.startswith("gradient/student/")]
    assert sum(shares) == pytest.approx(1.0, abs=0.01)
    weights = [v for k, v in lines[-1].items() if k.startswith("importance/layer1/")]
    assert sum(weights) == pytest.approx(1.0)


def test_the_float_start_of_copies_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    events: list[Event] = []
    recipe = recipe_in(tmp_path, seed=77, teachers=COPIES)
    run_of(tmp_path, recipe, max_steps=1, listen=events.append)
    assert sum(isinstance(event, PretrainingStarted) for event in events) == 1
    assert sum(isinstance(event, FloatCached) for event in events) == 2


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    run = Run.create(tmp_path / "mine")
    assert run.folder == tmp_path / "mine-2"
    run.write_file("recipe.yaml", "seed: 0")
    (run.folder / "notes.txt").write_text("of somebody else")
    run.remove_untrained()
    assert [path.name for path in run.folder.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    run = Run.create(tmp_path / "empty")
    assert run.folder == tmp_path / "empty"
    run.write_file("metrics.jsonl", "")  # begun, and then the plan was refused
    run.remove_untrained()
    assert not run.folder.exists()
    run = Run.create(tmp_path / "learned")
    run.append_metrics({"phase": "before"})
    run.remove_untrained()
    assert (run.folder / "metrics.jsonl").exists()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
