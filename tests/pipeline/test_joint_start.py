"""A method trained in float before anything is quantized: its heads begin quantization-aware training trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.engine import metrics
from qkd.engine.device import Machine
from qkd.engine.events import Event, JointStartCached, JointTrainingStarted, StepTaken
from qkd.pipeline.train import train_recipe
from qkd.report.describe import describe
from qkd.storage.artifacts import FLOAT_START
from qkd.storage.cache import cache_folder
from qkd.storage.run import Run
from tests.support.tiny_runs import TINY, Stop, losses, recipe_in, run_of

FOUR: dict[str, Any] = {"four": TINY["teachers"]["four"]}
ATSC: dict[str, Any] = {
    "method": {"name": "atsc"},
    "teachers": FOUR,
    "match": ["layer2"],
    "train": {"epochs": 2, "rate": 0.02},
}
SIMKD: dict[str, Any] = {**ATSC, "method": {"name": "simkd"}}
JOINT: dict[str, Any] = {"pretrain": {"epochs": 1, "joint_epochs": 2}}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def begun(folder: Path, name: str, **changes: Any) -> tuple[dict[str, Tensor], list[Event]]:
    """The ensemble as training began with it."""
    events: list[Event] = []
    run = Run.create(folder / name)
    train_recipe(recipe_in(folder, **changes), run, Machine("cpu", threads=1), max_steps=1, listen=events.append)
    (first,) = [path for path in run.checkpoints.files("last") if path.name.startswith("last-000000000-")]
    return torch.load(first, weights_only=True)["parts"], events


def kept_together() -> dict[str, Tensor]:
    (path,) = (cache_folder() / "joint").glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("changes", [ATSC, SIMKD], ids=["atsc", "simkd"])
def test_networks_and_heads_begin_with_what_was_trained_in_float(tmp_path: Path, changes: dict[str, Any]) -> None:
    random, _ = begun(tmp_path, "random", **changes)
    found, _ = begun(tmp_path, "trained", **changes, **JOINT)
    kept = kept_together()
    parts = ("networks.", "heads.")  # not what the anchor compares with: it begins with the phase
    weights = [name for name in kept if name.startswith(parts) and name.endswith("weight") and kept[name].dim() > 1]
    heads = [name for name in weights if name.startswith("heads.as_four.body")]
    assert len(heads) == 3  # the convolutions of the projector
    for name in weights:
        quantized = name.replace(".body.", ".body.body.")  # its inputs are joined before it
        assert torch.equal(found[quantized], kept[name]), name
        product = name in heads or name.startswith(
            ("networks.student.network.conv1", "networks.student.network.layer1")
        )
        if product or name.startswith("networks.four"):
            learned = product or changes is ATSC  # SimKD's teacher is frozen
            assert torch.equal(found[quantized], random[quantized]) is not learned, name


def test_it_is_trained_once_for_all_bits(tmp_path: Path) -> None:
    _, first = begun(tmp_path, "two", **ATSC, **JOINT)
    four = {"student": {"build": "resnet8", "width": 4, "quantize": "w4a4"}}
    _, second = begun(tmp_path, "four", **ATSC, **JOINT, **four)
    _, other = begun(tmp_path, "other", **{**ATSC, "method": {"name": "atsc", "anchor": 2.0}}, **JOINT)
    told = (JointTrainingStarted, JointStartCached)
    kinds = [{type(event) for event in events if isinstance(event, told)} for events in (first, second, other)]
    assert kinds == [{JointTrainingStarted}, {JointStartCached}, {JointTrainingStarted}]
    # one for the student and one for the teacher: joint training does not count for float starts
    assert len(list((cache_folder() / "float").glob("*.safetensors"))) == 2


def test_the_product_in_float_is_what_is_compared_with(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, **SIMKD, **JOINT)
    run, result = run_of(tmp_path, recipe, max_steps=1)
    data = load_data(recipe)
    in_float = assemble(recipe.in_float(), spec_of(data))
    assert "before anything is quantized: all phases in float, 2 epochs" in describe(recipe, in_float)
    kept = kept_together()
    in_float.ensemble.load_state_dict(kept)
    assert result.float_top1 == pytest.approx(metrics.test_top1(in_float.product(), data, 16, "cpu"))
    start = load_file(run.folder / FLOAT_START)
    assert all(torch.equal(tensor, kept[f"networks.student.network.{name}"]) for name, tensor in start.items())


def test_stopped_in_float_it_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_in(tmp_path, **ATSC, **JOINT)
    whole, _ = run_of(tmp_path, recipe, "whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other-cache"))
    begun: list[Event] = []

    def stop(event: Event) -> None:
        begun.append(event)
        joint = any(isinstance(each, JointTrainingStarted) for each in begun)
        if joint and isinstance(event, StepTaken) and event.epoch == 1:
            raise Stop

    broken = Run.create(tmp_path / "broken")
    with pytest.raises(Stop):
        train_recipe(recipe, broken, Machine("cpu", threads=1), listen=stop)
    (kept,) = broken.checkpoints.folder.glob("joint-*")
    again: list[Event] = []
    train_recipe(recipe, broken, Machine("cpu", threads=1), resume=True, listen=again.append)
    assert {event.epoch for event in again if isinstance(event, StepTaken)} == {0, 1}
    assert not list(kept.glob("*"))
    assert losses(whole) == losses(broken)
    one, other = whole.load_product(), broken.load_product()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_method_of_the_users_own_is_not_cached(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from qkd.distill.plan import Phase, Plan, Step\n"
        "from qkd.distill.terms import label\n"
        "def mine(setup):\n"
        "    return Plan((Phase('train', (Step([setup.student], [label(setup.student)]),)),))\n"
    )
    changes = {"method": {"name": f"{tmp_path / 'mine.py'}:mine"}, "teachers": {}, "match": []}
    for name in ("one", "two"):
        _, events = begun(tmp_path, name, **changes, **JOINT)
        assert any(isinstance(event, JointTrainingStarted) for event in events)
    assert not (cache_folder() / "joint").exists()
