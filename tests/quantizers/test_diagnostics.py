"""Broken quantizers are named, sound ones are not."""

from __future__ import annotations

import torch
from torch import nn

from qkd.quantizers import diagnose, quantizers
from tests.support.tiny_wirings import Residual, images, quantized


def test_a_sound_network_has_no_findings_and_stays_as_it_is() -> None:
    module = quantized(Residual, "w4a4").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert diagnose(module, [images()]) == []
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_dead_saturated_and_infinite_quantizers_are_named() -> None:
    module = quantized(Residual, "w4a4")
    broken = (
        ("layer1.relu", 1000, "dead: 100.0 % of its values are quantized to 0"),
        ("stem.2", 0.01, "saturated"),
        ("layer2.conv1.weight", 0.01, "saturated"),
        ("layer1.conv2.weight", 1000, "dead"),
    )
    for name, factor, words in broken:
        step = dict(quantizers(module))[name].step.data
        step.mul_(factor)
        found = {line.split(":")[0]: line for line in diagnose(module, [images(), images()])}
        assert words in found[name]
        step.div_(factor)
    nn.init.constant_(module.fc.weight, float("nan"))
    nn.init.constant_(module.get_submodule("layer1.bn1").bias, float("inf"))
    lines = diagnose(module, [images()])
    assert "fc.weight: weights or their scales are not finite" in lines
