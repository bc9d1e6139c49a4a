"""Sensitivity by layer and bits, measured on networks that stay as they are."""

from __future__ import annotations

import pytest
import torch

from qkd.quantizers import Scheme
from qkd.quantizers.sensitivity import costs, sensitivity
from tests.support.tiny_wirings import Residual, images, with_statistics

LABELS = torch.arange(16) % 5
INNER = {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.down.0"}


@pytest.mark.parametrize("family", ["lsq", "ternary", "binary"])
def test_families_of_one_number_of_bits_are_measured_on_the_grid_of_lsq(family: str) -> None:
    network = with_statistics(Residual)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scheme = Scheme({"ternary": 2, "binary": 1}.get(family, 4), 8, weight_family=family, overrides={"layer2.*": "w4a6"})
    found, inputs = sensitivity(network, scheme, images(), LABELS, (2, 8), "logits")
    plain, _ = sensitivity(network, Scheme(4, 8), images(), LABELS, (2, 8), "logits")
    assert found == plain
    assert set(found) == INNER
    assert {name: bits for name, bits in inputs.items() if bits != 8} == dict.fromkeys(
        [name for name in INNER if name.startswith("layer2.")], 6
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_more_bits_never_cost_more_by_loss() -> None:
    found, _ = sensitivity(with_statistics(Residual), Scheme(4, 8), images(), LABELS, (2, 3, 4, 8))
    for errors in found.values():
        assert list(errors) == [8, 4, 3, 2]
        assert list(errors.values()) == sorted(errors.values())


def test_costs_count_weights_and_the_pixels_they_are_applied_to() -> None:
    network = with_statistics(Residual)
    assert costs(network, ["layer2.conv1", "fc"], images(1), "size") == {"layer2.conv1": 6 * 8 * 9, "fc": 40}
    assert costs(network, ["layer2.conv1", "fc"], images(1), "macs") == {"layer2.conv1": 6 * 8 * 9 * 64, "fc": 40}
    assert not any(part._forward_hooks for part in network.modules())
