"""Calibration chooses every scale and changes nothing else; what is calibrated learns."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qkd.errors import DataError, QkdError, SchemeError
from qkd.quantizers import (
    Scheme,
    calibrate,
    insert,
    pretend_calibrated,
    quantizers,
    reestimate_batch_norm,
    scales,
    uncalibrated,
)
from tests.support.refusals import Refused
from tests.support.tiny_wirings import (
    Bottleneck,
    Functional,
    Residual,
    images,
    quantized,
    with_statistics,
)


def test_calibration_is_needed_and_changes_nothing_else(refused: Refused) -> None:
    module = insert(with_statistics(Residual), Scheme(4, 4))
    assert len(uncalibrated(module)) == len(list(quantizers(module))) > 10
    with refused(SchemeError, "quantizer.not-calibrated"):
        module(images())
    with refused(DataError, "data.no-batch"):
        calibrate(module, [])
    before = {name: value.clone() for name, value in module.state_dict().items() if "tensor_quant" not in name}
    module.train()
    calibrate(module, iter([images(), images()]))
    assert not uncalibrated(module)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    steps = [core.scale() for name, core in quantizers(module) if not name.endswith("weight")]
    assert all(step > 0 for step in steps)
    again = copy.deepcopy(module)
    calibrate(again, [images(), images()])
    assert all(torch.equal(a, b) for a, b in zip(scales(module), scales(again), strict=True))


def test_relu6_is_seen_by_calibration() -> None:
    network = with_statistics(Bottleneck)
    nn.init.constant_(network.stem[1].bias, 5)
    module = insert(network, Scheme(4, 4, calibration="minmax"))
    calibrate(module, [images()])
    core = dict(quantizers(module))["stem.2"]
    assert float(core.scale() * core.high) == pytest.approx(6)


def test_autocast_trains_on_the_same_grid() -> None:
    module = quantized(Residual, "w2a2").train()
    with torch.autocast("cpu", torch.bfloat16):
        output = module(images())
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert all(step.grad is not None and step.grad.dtype == torch.float32 for step in scales(module))


@pytest.mark.parametrize("method", ["mse", "lsq", "minmax", "percentile"])
def test_every_calibration_method_keeps_eight_bits_close(method: str) -> None:
    network = with_statistics(Residual)
    module = insert(network, Scheme(8, 8, calibration=method))
    calibrate(module, [images()])
    with torch.no_grad():
        assert (module(images()) - network(images())).norm() / network(images()).norm() < 0.1


def test_norms_that_have_seen_nothing_use_the_batch() -> None:
    network = Residual()
    for convolution in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        nn.init.normal_(convolution.weight, 0, 20)
    module = insert(network, Scheme(4, 4))
    calibrate(module, [images()])
    assert module.get_submodule("layer1.bn1").num_batches_tracked == 0
    assert torch.equal(module.get_submodule("layer1.bn1").running_mean, torch.zeros(6))
    tops = {name: float(core.scale() * core.high) for name, core in quantizers(module) if name.endswith("relu")}
    assert all(0.5 < top < 6 for top in tops.values())


def test_statistics_without_a_count_are_statistics() -> None:
    network = with_statistics(Residual)
    counted, uncounted = insert(network, Scheme(4, 4)), insert(network, Scheme(4, 4))
    for module in uncounted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    for module in (counted, uncounted):
        calibrate(module, [images()])
    for (_, one), (_, two) in zip(quantizers(counted), quantizers(uncounted), strict=True):
        assert torch.equal(one.step, two.step)


def test_dead_and_broken_tensors_are_named(caplog: pytest.LogCaptureFixture, refused: Refused) -> None:
    network = with_statistics(Functional)
    nn.init.zeros_(network.a.weight)
    nn.init.constant_(network.a.bias, -1)
    module = insert(network, Scheme(4, 4))
    calibrate(module, [images()])
    assert "relu reads nothing but zeros" in caplog.text
    assert all((core.step > 0).all() for _, core in quantizers(module))
    nn.init.constant_(module.b.bias, float("nan"))
    with refused(QkdError, "calibration.not-finite"):
        calibrate(module, [images()])


def test_reestimated_statistics_are_the_mean_over_batches_with_rounding_on(refused: Refused) -> None:
    module = quantized(Residual, "w2a2").eval()
    norm, seen = module.get_submodule("layer1.bn1"), []
    norm.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].mean((0, 2, 3))))
    batches = list(images(24).split(8))
    momentum = norm.momentum
    reestimate_batch_norm(module, batches)
    assert torch.allclose(norm.running_mean, torch.stack(seen).mean(0), atol=1e-6)
    assert norm.momentum == momentum
    assert not module.training
    with refused(DataError, "data.no-batch"):
        reestimate_batch_norm(module, [])


@pytest.mark.parametrize(
    ("build", "text", "family"),
    [(Residual, "w2a2", "lsq"), (Bottleneck, "w2a2", "lsq"), (Functional, "w4a2", "lsq"), (Residual, "w1a2", "hwgq")],
)
def test_low_bits_train(build: Callable[[], nn.Module], text: str, family: str) -> None:
    module = quantized(build, text, family=family).train()
    x = images(32)
    labels = (x.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), labels)
        loss.backward()
        if not losses:
            assert all(step.grad is not None and step.grad.abs().sum() > 0 for step in scales(module))
            assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all((core.step.abs() > 0).all() for name, core in quantizers(module) if hasattr(core, "step"))


def test_calibration_under_a_name_and_norms_that_are_left() -> None:
    module = quantized(Residual)
    before = {name: core.scale().clone() for name, core in quantizers(module) if not name.endswith("weight")}
    with torch.no_grad():
        for _, core in quantizers(module):
            core.step.mul_(3)
    calibrate(module, [images()], under="layer2.")
    for name, scale in before.items():
        changed = dict(quantizers(module))[name].scale()
        assert torch.equal(changed, 3 * scale) != name.startswith("layer2."), name
    left, other = module.get_submodule("layer1.bn1"), module.get_submodule("layer1.bn2")
    means = left.running_mean.clone(), other.running_mean.clone()
    reestimate_batch_norm(module, [images() + 1], leave=[left])
    assert torch.equal(left.running_mean, means[0])
    assert not torch.equal(other.running_mean, means[1])


def test_pretending_leaves_what_is_calibrated() -> None:
    module = insert(with_statistics(Residual), Scheme(4, 4))
    done = quantized(Residual)
    scales_before = [step.clone() for step in scales(done)]
    for network in (module, done):
        pretend_calibrated(network)
        assert not uncalibrated(network)
    assert all(torch.equal(a, b) for a, b in zip(scales_before, scales(done), strict=True))
