"""Bits go where they matter, and stay within the budget."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from qkd.allocate import choose, costs, sensitivity
from qkd.errors import SchemeError
from qkd.quantizers import Scheme, insert, quantizers
from tests.tiny_wirings import Residual, images, settled


def test_the_budget_is_met_and_sensitive_layers_keep_their_bits() -> None:
    found = {"a": {2: 1.0, 4: 0.1, 8: 0.0}, "b": {2: 0.01, 4: 0.001, 8: 0.0}, "c": {2: 0.5, 4: 0.2, 8: 0.0}}
    cost = {"a": 100, "b": 100, "c": 100}
    for budget in (2, 3, 4, 5, 6, 8):
        chosen = choose(found, cost, budget)
        assert chosen.mean_bits <= budget
        assert chosen.bits["b"] <= chosen.bits["c"]
        affordable = (
            sum(found[name][bits] for name, bits in zip(found, each, strict=True))
            for each in product((2, 4, 8), repeat=3)
            if sum(each) <= 3 * budget
        )
        assert chosen.error <= 3 * min(affordable) + 0.05
    with pytest.raises(SchemeError, match="2 is the least"):
        choose(found, cost, 1.5)


def test_lowering_one_layer_moves_the_logits_more_the_fewer_bits_it_has() -> None:
    network = settled(Residual)
    found, activations = sensitivity(network, Scheme(4, 8, overrides={"layer1.*": "w4a6"}), [images()], (2, 4, 8))
    assert set(found) == {f"layer{i}.conv{j}" for i in (1, 2) for j in (1, 2)} | {"layer2.down.0"}
    assert all(errors[2] > errors[4] > errors[8] == 0 for errors in found.values())
    assert activations["layer1.conv1"] == 6
    assert activations["layer2.conv1"] == 8
    size, macs = (costs(network, found, images(1), by) for by in ("size", "macs"))
    assert size["layer1.conv1"] == 6 * 6 * 9
    assert macs["layer1.conv1"] == 6 * 6 * 9 * 16 * 16
    assert macs["layer2.conv2"] == 8 * 8 * 9 * 8 * 8
    chosen = choose(found, size, 3)
    block = chosen.block(Scheme(4, 8, first=6), activations)
    module = insert(network, Scheme(**block))
    bits = {name: core.bits for name, core in quantizers(module)}
    assert {name: bits[f"{name}.weight"] for name in found} == dict(chosen.bits)
    assert bits["stem.0.weight"] == 6
    assert not any(
        isinstance(module, torch.nn.Conv2d) and module.weight.grad is not None for module in network.modules()
    )
