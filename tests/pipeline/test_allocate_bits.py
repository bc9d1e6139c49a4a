"""Bits go where they matter, and stay within the budget."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qkd.cli.main import main
from qkd.engine.device import Machine
from qkd.errors import SchemeError
from qkd.pipeline.allocate_bits import (
    COMMIT,
    NAME,
    allocate_bits,
    choose_bits,
    costs,
    packed_size,
    sensitivity,
    under_size,
)
from qkd.pipeline.export import export_run
from qkd.pipeline.reload import reload_product
from qkd.pipeline.train import train_recipe
from qkd.quantizers import Scheme, calibrate, insert, quantizers
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_runs import recipe_in
from tests.support.tiny_wirings import Residual, images, with_statistics


def test_the_budget_is_met_and_sensitive_layers_keep_their_bits(refused: Refused) -> None:
    found = {"a": {2: 1.0, 4: 0.1, 8: 0.0}, "b": {2: 0.01, 4: 0.001, 8: 0.0}, "c": {2: 0.5, 4: 0.2, 8: 0.0}}
    cost = {"a": 100, "b": 100, "c": 100}
    for budget in (2, 3, 4, 5, 6, 8):
        chosen = choose_bits(found, cost, budget)
        assert chosen.mean_bits <= budget
        assert chosen.bits["b"] <= chosen.bits["c"]
        affordable = (
            sum(found[name][bits] for name, bits in zip(found, each, strict=True))
            for each in product((2, 4, 8), repeat=3)
            if sum(each) <= 3 * budget
        )
        assert chosen.error <= 3 * min(affordable) + 0.05
    with refused(SchemeError, "allocation.budget-too-small"):
        choose_bits(found, cost, 1.5)


def test_lowering_one_layer_moves_the_logits_more_the_fewer_bits_it_has() -> None:
    network = with_statistics(Residual)
    scheme = Scheme(4, 8, overrides={"layer1.*": "w4a6"})
    found, activations = sensitivity(network, scheme, images(), torch.arange(len(images())) % 4, (2, 4, 8), "logits")
    assert set(found) == {f"layer{i}.conv{j}" for i in (1, 2) for j in (1, 2)} | {"layer2.down.0"}
    assert all(errors[2] > errors[4] > errors[8] == 0 for errors in found.values())
    assert activations["layer1.conv1"] == 6
    assert activations["layer2.conv1"] == 8
    size, macs = (costs(network, found, images(1), by) for by in ("size", "macs"))
    assert size["layer1.conv1"] == 6 * 6 * 9
    assert macs["layer1.conv1"] == 6 * 6 * 9 * 16 * 16
    assert macs["layer2.conv2"] == 8 * 8 * 9 * 8 * 8
    chosen = choose_bits(found, size, 3)
    block = chosen.block(Scheme(4, 8, first=6), activations)
    module = insert(network, Scheme(**block))
    bits = {name: core.bits for name, core in quantizers(module)}
    assert {name: bits[f"{name}.weight"] for name in found} == dict(chosen.bits)
    assert bits["stem.0.weight"] == 6
    assert not any(
        isinstance(module, torch.nn.Conv2d) and module.weight.grad is not None for module in network.modules()
    )


def test_sensitivity_by_loss_is_what_the_loss_rises_by() -> None:
    network, x = with_statistics(Residual), images()
    labels = network.eval()(x).argmax(1).detach()
    found, _ = sensitivity(network, Scheme(4, 8), x, labels, (2, 8))
    assert all(errors[2] >= errors[8] == 0 for errors in found.values())
    assert any(errors[2] > 0 for errors in found.values())
    name = max(found, key=lambda layer: found[layer][2])
    losses = []
    for overrides in ({}, {name: "w2a8"}):
        module = insert(network, Scheme(8, 8, overrides=overrides))
        calibrate(module, [x])
        with torch.no_grad():
            losses.append(F.cross_entropy(module.eval()(x), labels).item())
    assert losses[1] - losses[0] == pytest.approx(found[name][2], abs=1e-5)


def test_a_file_no_larger_than_the_budget(refused: Refused) -> None:
    network, scheme, some = with_statistics(Residual), Scheme(8, 8), images(4)
    found, activations = sensitivity(network, scheme, images(), torch.arange(len(images())) % 4, (2, 4, 8), "logits")
    least, most = (packed_size(network, Scheme(bits, 8), some) for bits in (2, 8))
    sizes = []

    def bytes_of(scheme: Scheme) -> int:
        return packed_size(network, scheme, some)

    for share in (0.0, 0.5, 1.0):
        budget = (least + share * (most - least)) / 1000
        chosen = under_size(network, scheme, found, activations, budget, bytes_of)
        sizes.append(bytes_of(Scheme(**chosen.block(scheme, activations))))
        assert sizes[-1] <= 1000 * budget
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == most
    with refused(SchemeError, "allocation.budget-too-small"):
        under_size(network, scheme, found, activations, 1.0, lambda scheme: 2000)


@pytest.mark.parametrize("unit", ["bits", "kb"])
def test_the_block_is_what_a_recipe_trains_with(tmp_path: Path, unit: Any) -> None:
    alone = {"method": {"name": "qat"}, "teachers": {}, "match": [], "train": {"epochs": 1}}
    recipe, machine = recipe_in(tmp_path, **alone), Machine("cpu", threads=1)
    most = allocate_bits(recipe, 1e9, unit=unit, machine=machine)
    assert most.bits and most.kb and set(most.bits.values()) == {8}
    budget = 3.0 if unit == "bits" else most.kb - 2
    found = allocate_bits(recipe, budget, unit=unit, machine=machine)
    assert found.mean_bits and found.kb and found.bits
    assert (found.mean_bits if unit == "bits" else found.kb) <= budget
    student = {"build": "resnet8", "width": 4, "quantize": json.loads(json.dumps(found.quantize))}
    run = Run.create(tmp_path / "run")
    train_recipe(recipe_in(tmp_path, **alone, student=student), run, Machine("cpu", threads=1))
    bits = {name: core.bits for name, core in quantizers(reload_product(run).product)}
    assert {name: bits[f"{name}.weight"] for name in found.bits} == found.bits
    assert len(set(found.bits.values())) > 1
    exported = (export_run(run, storage="packed").bytes or 0) / 1000  # a commit is only written inside a git tree
    assert exported <= found.kb < exported + (NAME + COMMIT + 40) / 1000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--bits", "nan"], "--bits nan: give a finite number"),
        (["--kb", "inf"], "--kb inf: give a finite number"),
        (["--bits", "3", "--out", "./r.yaml"], "is the recipe itself"),
    ],
)
def test_a_budget_is_a_number_and_the_recipe_is_not_overwritten(
    asked: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("a recipe")
    with pytest.raises(SystemExit) as end:
        main(["allocate", "r.yaml", *asked])
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "r.yaml").read_text() == "a recipe"
