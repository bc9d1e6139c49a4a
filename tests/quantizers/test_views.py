"""What a view of a network computes otherwise: quantizers at other bits over their range, batch norms that store nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qkd.networks.batch_norm import replace_batch_norms
from qkd.quantizers import FAMILIES, disabled
from qkd.quantizers.lsq import LsqQuant
from qkd.quantizers.views import BatchStatistics, DrawnBits, Dropped, layers_seen, on_finer_grid
from tests.support.tiny_wirings import Residual, activation_layer, images, quantized


def test_the_finer_grid_is_its_formula() -> None:
    core = LsqQuant(2, False, "mse")
    core.set_step(torch.tensor([0.5]))
    x = np.array([-1.0, 0.0, 0.002, 0.3, 0.7449, 1.4, 1.499, 1.5, 5.0])
    step = 0.5 * (2**2 - 1) / (2**8 - 1)  # s_H = s_A (2^nA - 1) / (2^nH - 1)
    expected = np.clip(np.round(x / step), 0, 255) * step
    found = on_finer_grid(core, torch.from_numpy(x).float(), 8).double().numpy()
    assert np.allclose(found, expected, atol=1e-6)
    assert found.max() == pytest.approx(1.5)  # the top level of 2 bits


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("own", "bits"), [(2, 8), (4, 8), (2, 4), (3, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_range_at_other_bits(family: str, own: int, bits: int, signed: bool) -> None:
    core = activation_layer(family, own, signed).act_quant.core
    many = torch.linspace(-20, 20, 40001)
    with torch.no_grad():
        coarse, fine = core.value(many), on_finer_grid(core, many, bits)
    step = (float(coarse.max()) - float(coarse.min())) / (2**bits - 1)
    assert len(fine.unique()) == 2**bits
    slack = (
        1e-5 if not signed else step / 2 + 1e-5
    )  # zero stays a level, so a grid of both signs may lie a little beside
    assert abs(float(fine.max() - coarse.max())) <= slack
    assert abs(float(fine.min() - coarse.min())) <= slack
    inside = (many > fine.min()) & (many < fine.max())
    assert float((fine - many)[inside].abs().max()) <= step / 2 + 1e-5
    assert float(on_finer_grid(core, torch.zeros(1), bits)) == 0.0


def test_bits_are_drawn_as_often_as_asked_and_only_where_there_are_fewer() -> None:
    layer, x = activation_layer("lsq", 2, signed=False), torch.linspace(0, 3, 50)
    coarse, fine = layer(x), on_finer_grid(layer.act_quant.core, x, 8)
    assert not torch.equal(coarse, fine)
    drawn = DrawnBits(layer, 8, 0.3)
    torch.manual_seed(0)
    results = [drawn(x) for _ in range(2000)]
    finer = sum(torch.equal(result, fine) for result in results)
    assert finer + sum(torch.equal(result, coarse) for result in results) == 2000
    assert abs(finer / 2000 - 0.3) < 0.03  # three standard deviations
    state = torch.get_rng_state()
    assert torch.equal(DrawnBits(layer, 2, 1.0)(x), coarse)
    with disabled(layer):
        assert torch.equal(drawn(x - 1), (x - 1).relu())
    assert torch.equal(torch.get_rng_state(), state)


def test_each_quantizer_draws_for_itself() -> None:
    network = quantized(Residual, "w2a2")
    view = layers_seen(network, network, 8, 0.5)
    with torch.no_grad():
        seen = {tuple(view(images(2)).flatten().tolist()) for _ in range(40)}
    assert len(seen) > 10


@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_store_nothing_and_follow_the_mode_of_the_trained_one(training: bool) -> None:
    norm = replace_batch_norms(torch.nn.BatchNorm2d(3))
    torch.nn.init.uniform_(norm.running_mean)
    torch.nn.init.uniform_(norm.weight)
    trained = copy.deepcopy(norm).train(training)
    norm.eval()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = 3 * torch.randn(4, 3, 5, 5) + 1
    statistics = (None, None) if training else (norm.running_mean, norm.running_var)
    expected = F.batch_norm(x, *statistics, norm.weight, norm.bias, training, 0.0, norm.eps)
    assert torch.equal(BatchStatistics(norm, trained)(x), expected)
    assert not norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_dropout_sets_a_share_of_the_activations_to_zero_in_training_alone() -> None:
    network = quantized(Residual, "w4a4")
    seen = layers_seen(network, network, dropout=0.25)
    dropped = [layer for layer in seen.children() if isinstance(layer, Dropped)]
    assert dropped
    network.eval()
    assert torch.equal(seen(images()), network(images()))
    network.train()
    positive = torch.rand(4, 8, 16, 16) + 0.5
    layer = dropped[-1]
    own = layer.layers[0](positive)
    made = layer(positive)
    kept = made != 0
    assert made[kept].allclose(own[kept] / 0.75)
    assert kept[own != 0].float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.manual_seed(3)
    first = layer(positive)
    torch.manual_seed(3)
    assert torch.equal(layer(positive), first) and not torch.equal(layer(positive), first)
