"""Weights as the field's trainers write them get into a network, whatever they wrapped it in; what does not fit is named."""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qkd.errors import NetworkError
from qkd.networks import NETWORKS
from qkd.networks.build import build
from qkd.networks.start_weights import load_checkpoint
from tests.support.refusals import Refused

State = Mapping[str, Tensor]


def network(classes: int = 4, channels: int = 1) -> nn.Module:
    return NETWORKS["resnet8"](classes=classes, width=4, channels=channels)


def prefixed(state: State, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def zeros(state: State) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def averaged(state: State) -> dict[str, Any]:
    inner = network()
    inner.load_state_dict(state)
    return dict(AveragedModel(inner).state_dict())


def compiled_inside(state: State) -> dict[str, Tensor]:
    return {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in state.items()}


def with_optimizer(state: State) -> dict[str, Any]:
    inner = network()
    inner.load_state_dict(state)
    optimizer = torch.optim.SGD(inner.parameters(), 0.1, momentum=0.9)
    sum(parameter.sum() for parameter in inner.parameters()).backward()
    optimizer.step()
    return {"epoch": 3, "state_dict": prefixed(state, "module."), "optimizer": optimizer.state_dict()}


ARGS = argparse.Namespace(lr=0.1, data=Path("x"))
FORMATS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, "weights"),
    "data-parallel": (lambda s: prefixed(s, "module."), "weights, without module. in their names"),
    "imagenet-example": (with_optimizer, "weights at state_dict, without module. in their names"),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "weights, without _orig_mod. in their names"),
    "compiled-inside": (compiled_inside, "weights, without _orig_mod. in their names"),
    "ddp-of-compiled": (
        lambda s: prefixed(s, "module._orig_mod."),
        "weights, without module. and _orig_mod. in their names",
    ),
    "torchvision-reference": (lambda s: {"model": s, "args": ARGS, "epoch": 3}, "weights at model"),
    "torchvision-reference-ema": (
        lambda s: {"model": zeros(s), "model_ema": averaged(s), "args": ARGS},
        "weights at model_ema, not those at model, without module. in their names, left out: n_averaged",
    ),
    "timm": (
        lambda s: {"arch": "x", "state_dict": zeros(s), "state_dict_ema": s, "args": ARGS, "metric": 71.2},
        "weights at state_dict_ema, not those at state_dict",
    ),
    "lightning": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "loss.weight": torch.ones(4)}, "hyper_parameters": ARGS},
        "weights at state_dict, without model. in their names, left out: loss.weight",
    ),
    "lightning-compiled": (
        lambda s: {"state_dict": prefixed(s, "net._orig_mod.")},
        "weights at state_dict, without net. and _orig_mod. in their names",
    ),
    "lightning-with-teacher": (
        lambda s: {"state_dict": prefixed(s, "model.") | prefixed(zeros(s), "teacher.")},
        "weights at state_dict, not those at state_dict.teacher, without model. in their names, left out: "
        "teacher.conv1.weight, teacher.bn1.weight, teacher.bn1.bias, and 44 more",
    ),
    "model-state-dict": (lambda s: {"model_state_dict": s, "epoch": 2}, "weights at model_state_dict"),
    "net": (lambda s: {"net": s, "acc": 91.2}, "weights at net"),
    "nested": (
        lambda s: {"state": {"model": prefixed(s, "module.")}},
        "weights at state.model, without module. in their names",
    ),
    "numpy-metric": (lambda s: {"state_dict": s, "best": np.float64(91.2)}, "weights at state_dict"),
    "own-class": (lambda s: {"model": s, "ema": network(), "size": torch.Size([3])}, "weights at model"),
    "averaged": (averaged, "weights, without module. in their names, left out: n_averaged"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_trainers_write_is_read_and_said(name: str, tmp_path: Path) -> None:
    trained, fresh = network(), network()
    write, said = FORMATS[name]
    torch.save(write(trained.state_dict()), tmp_path / "weights.pt")
    assert str(load_checkpoint(fresh, tmp_path / "weights.pt")) == said
    found = fresh.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.state_dict().items())
    assert len(found) == len(trained.state_dict())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_safetensors_of_the_same(prefix: str, name: str, tmp_path: Path) -> None:
    trained, fresh = network(), network()
    save_file(prefixed(trained.state_dict(), prefix), tmp_path / name)
    load_checkpoint(fresh, tmp_path / name)
    assert torch.equal(fresh.conv1.weight, trained.conv1.weight)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    trained, fresh = network(), network()
    torch.save(trained.half().state_dict(), tmp_path / "half.pt")
    assert str(load_checkpoint(fresh, tmp_path / "half.pt")) == "weights, stored as float16"
    assert fresh.conv1.weight.dtype == torch.float32
    assert torch.equal(fresh.conv1.weight, trained.conv1.weight.float())


def test_nothing_in_a_file_is_executed(tmp_path: Path, refused: Refused) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"model": network().state_dict(), "args": Trap()}, tmp_path / "trap.pt")
    load_checkpoint(network(), tmp_path / "trap.pt")
    torch.save({"model": Trap()}, tmp_path / "only.pt")
    with refused(NetworkError, "start_from.no-state-dict"):
        load_checkpoint(network(), tmp_path / "only.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch.jit's
def test_a_whole_pickled_network_is_refused_by_name(tmp_path: Path, refused: Refused) -> None:
    torch.save(network(), tmp_path / "whole.pt")
    with refused(NetworkError, "start_from.no-state-dict"):
        load_checkpoint(network(), tmp_path / "whole.pt")
    torch.save({"model": network(), "epoch": 3}, tmp_path / "inside.pt")
    with refused(NetworkError, "start_from.no-state-dict"):
        load_checkpoint(network(), tmp_path / "inside.pt")
    torch.save(network(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with refused(NetworkError, "start_from.not-readable"):
        load_checkpoint(network(), tmp_path / "old.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with refused(NetworkError, "start_from.not-readable"):
        load_checkpoint(network(), tmp_path / "script.pt")
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(NetworkError, match="not readable"):
        load_checkpoint(network(), tmp_path / "text.pt")


class Around(nn.Module):
    """A network around the one that was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "backbone."])
def test_a_network_around_the_trained_one_takes_its_weights(prefix: str, tmp_path: Path) -> None:
    trained, around = network(), Around()
    torch.save(prefixed(trained.state_dict(), prefix), tmp_path / "weights.pt")
    loaded = load_checkpoint(around, tmp_path / "weights.pt")
    assert torch.equal(around.net.conv1.weight, trained.conv1.weight)
    assert loaded.added == ("" if prefix == "net." else "net.")


def test_words_of_wrappers_may_be_the_networks_own(tmp_path: Path) -> None:
    trained, fresh = nn.DataParallel(network()), nn.DataParallel(network())
    for prefix in ("", "module.", "_orig_mod."):
        torch.save(prefixed(trained.state_dict(), prefix), tmp_path / "weights.pt")
        load_checkpoint(fresh, tmp_path / "weights.pt")
        assert torch.equal(fresh.module.conv1.weight, trained.module.conv1.weight)


def test_of_several_networks_none_is_chosen_by_chance(tmp_path: Path, refused: Refused) -> None:
    state = network().state_dict()
    torch.save({"state_dict": prefixed(state, "student.") | prefixed(state, "teacher.")}, tmp_path / "two.pt")
    with refused(NetworkError, "start_from.several-networks"):
        load_checkpoint(network(), tmp_path / "two.pt")
    torch.save({"student": state, "teacher": state}, tmp_path / "two.pt")
    with refused(NetworkError, "start_from.several-networks"):
        load_checkpoint(network(), tmp_path / "two.pt")


def test_what_does_not_fit_is_named_and_counted(tmp_path: Path, refused: Refused) -> None:
    path, state = tmp_path / "weights.pt", network().state_dict()
    torch.save({**state, "fc2.weight": state["fc.weight"], "extra": torch.ones(1)}, path)
    with refused(NetworkError, "start_from.other-tensors"):
        load_checkpoint(network(), path)
    torch.save({name.replace("fc.", "head."): tensor for name, tensor in state.items()}, path)
    with refused(NetworkError, "start_from.other-tensors"):
        load_checkpoint(network(), path)
    torch.save({"model": nn.Linear(2, 2).state_dict(), "a": torch.ones(1)}, path)
    with refused(NetworkError, "start_from.other-tensors"):
        load_checkpoint(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.PReLU()).append(network()), path)
    torch.save(network(channels=3).state_dict(), path)
    with refused(NetworkError, "start_from.other-shape"):
        load_checkpoint(network(), path)
    torch.save({**state, "fc.bias": torch.ones(4, dtype=torch.int8)}, path)
    with refused(NetworkError, "start_from.not-float"):
        load_checkpoint(network(), path)
    torch.save({**state, "fc.bias": torch.full((4,), float("nan"))}, path)
    with refused(NetworkError, "start_from.not-finite"):
        load_checkpoint(network(), path)
    torch.save({"epoch": 3}, path)
    with refused(NetworkError, "start_from.no-state-dict"):
        load_checkpoint(network(), path)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_another_number_of_classes_needs_a_fresh_head(prefix: str, tmp_path: Path, refused: Refused) -> None:
    trained, path = network(classes=7), tmp_path / "seven.pt"
    torch.save(prefixed(trained.state_dict(), prefix), path)
    fresh = network()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with refused(NetworkError, "start_from.other-shape") as info:
        load_checkpoint(fresh, path)
    assert "only fc differs, 7 classes for 4: `start_head: fresh`" in str(info.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    assert load_checkpoint(fresh, path, fresh_head=True).fresh == ["fc.weight", "fc.bias"]
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("fc.") else trained.state_dict()[name])


def test_a_fresh_head_needs_none_in_the_file(tmp_path: Path) -> None:
    trained = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("fc.")}
    for more in ({}, {"fc.0.weight": torch.ones(3, 3), "fc.2.weight": torch.ones(3, 3)}):
        fresh, path = network(), tmp_path / "backbone.pt"
        torch.save({**trained, **more}, path)
        load_checkpoint(fresh, path, fresh_head=True)
        assert torch.equal(fresh.conv1.weight, trained["conv1.weight"])


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_the_head_is_the_layer_before_the_logits(name: str, tmp_path: Path) -> None:
    trained, fresh = (build(f"torchvision:{name}", classes=n, options={}) for n in (3, 4))
    torch.save(trained.state_dict(), tmp_path / "three.pt")
    loaded = load_checkpoint(fresh, tmp_path / "three.pt", fresh_head=True)
    head = {"squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3"}[name]
    assert loaded.fresh == [f"{head}.weight", f"{head}.bias"]


def test_logits_of_several_layers_have_no_fresh_head(tmp_path: Path, refused: Refused) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    torch.save(Sum().state_dict(), tmp_path / "sum.pt")
    with refused(NetworkError, "start_head.no-classifier"):
        load_checkpoint(Sum(), tmp_path / "sum.pt", fresh_head=True)


def test_files_of_torchvisions_own_may_have_auxiliary_classifiers(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({**state, "aux1.fc1.weight": torch.ones(2, 2), "AuxLogits.fc.bias": torch.ones(2)}, tmp_path / "aux.pt")
    assert load_checkpoint(network(), tmp_path / "aux.pt").left_out == ["aux1.fc1.weight", "AuxLogits.fc.bias"]


def test_older_names_of_torchvisions_densenets(tmp_path: Path) -> None:
    trained, fresh = (build("torchvision:densenet121", classes=4) for _ in range(2))
    old = {re.sub(r"(\.denselayer\d+\.\w+)([12]\.)", r"\1.\2", n): each for n, each in trained.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "dense.pth")
    load_checkpoint(fresh, tmp_path / "dense.pth")
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_a_network_that_asks_for_the_version_of_its_state(tmp_path: Path) -> None:
    trained, fresh = (build("torchvision:mnasnet0_5", classes=4) for _ in range(2))
    save_file(trained.state_dict(), tmp_path / "mnasnet.safetensors")  # without a version
    load_checkpoint(fresh, tmp_path / "mnasnet.safetensors")
    assert torch.equal(fresh.classifier[1].weight, trained.classifier[1].weight)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: batch norm, drop and activation in one layer, with the names of a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def timms_network(name: str, num_classes: int, in_chans: int) -> nn.Module:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn1 = nn.Conv2d(in_chans, 4, 3), BatchNormAct2d(4)
            self.blocks, self.fc = nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4)), nn.Linear(4, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.blocks(self.bn1(self.conv(x))).mean((2, 3)))

    return Small()


@pytest.fixture
def like_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of timm's shape with one network, for machines where timm is not installed."""
    parts = {
        "timm": {"create_model": timms_network, "is_model": lambda name: True},
        "timm.layers": {"BatchNormAct2d": BatchNormAct2d, "Linear": type("Linear", (nn.Linear,), {})},
        "timm.models": {},
        "timm.models.vgg": {"ConvMlp": type("ConvMlp", (nn.Module,), {})},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("like_timm")
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_timms_names_fit_the_layers_that_replace_its_own(prefix: str, tmp_path: Path) -> None:
    trained, fresh = timms_network("small", 4, 1).eval(), build("timm:small", classes=4, channels=1).eval()
    torch.nn.init.uniform_(trained.bn1.weight)
    torch.nn.init.uniform_(trained.blocks[1].running_var)
    assert "bn1.norm.weight" in fresh.state_dict()
    torch.save(prefixed(trained.state_dict(), prefix), tmp_path / "timm.pt")
    load_checkpoint(fresh, tmp_path / "timm.pt")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(fresh(images), trained(images))
    again = build("timm:small", classes=4, channels=1).eval()
    torch.save(fresh.state_dict(), tmp_path / "ours.pt")
    load_checkpoint(again, tmp_path / "ours.pt")
    assert torch.equal(again(images), trained(images))
