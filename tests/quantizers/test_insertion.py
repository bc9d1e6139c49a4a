"""Insertion: which tensors get a quantizer, with how many bits, and that the network stays the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from qkd.errors import SchemeError
from qkd.networks.tracing import trace, where_from
from qkd.quantizers import (
    Scheme,
    calibrate,
    describe,
    disabled,
    insert,
    quantizers,
)
from qkd.quantizers.brevitas_imports import qnn
from tests.support.refusals import Refused
from tests.support.tiny_wirings import (
    LAYERS,
    NETWORKS,
    QUANTIZERS,
    Bottleneck,
    PreActivation,
    Residual,
    images,
    part,
    quantized,
    sources,
    with_statistics,
)


@pytest.mark.parametrize("build", NETWORKS)
def test_everything_an_integer_kernel_reads_is_quantized(build: Callable[[], nn.Module]) -> None:
    module = quantized(build)
    readers = 0
    for node in module.graph.nodes:
        name = "" if node.op == "call_module" else getattr(node.target, "__name__", node.target)
        pooled = isinstance(part(module, node), nn.AdaptiveAvgPool2d) or "avg_pool" in str(name) or name == "mean"
        if isinstance(part(module, node), LAYERS) or pooled or name in ("add", "cat"):
            readers += 1
            for source in sources(module, node):
                assert isinstance(part(module, source), QUANTIZERS), (node, source)
    assert readers > 5
    output = next(iter(node for node in module.graph.nodes if node.op == "output"))
    assert isinstance(part(module, output.all_input_nodes[0]), qnn.QuantLinear)


@pytest.mark.parametrize("build", NETWORKS)
def test_every_relu_call_has_its_own_quantizer_and_signs_are_right(build: Callable[[], nn.Module]) -> None:
    module = quantized(build)
    calls = [str(node.target) for node in module.graph.nodes if isinstance(part(module, node), QUANTIZERS)]
    assert len(calls) == len(set(calls))
    assert not any(isinstance(layer, (nn.ReLU, nn.ReLU6)) for layer in module.children())
    seen: dict[str, list[float]] = {}
    for name in calls:
        module.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: seen.setdefault(name, []).append(float(output.min()))
        )
    with torch.no_grad(), disabled(module):
        module(images())
    for name in calls:
        assert module.get_submodule(name).act_quant.is_signed == (min(seen[name]) < 0), name


@pytest.mark.parametrize("build", NETWORKS)
def test_the_network_computes_the_same(build: Callable[[], nn.Module]) -> None:
    network, x = with_statistics(build), images()
    before = copy.deepcopy(network.state_dict())
    module = insert(network, Scheme(8, 8))
    calibrate(module, [x])
    with torch.no_grad():
        expected = network(x)
        with disabled(module):
            assert torch.allclose(module(x), expected, atol=1e-6)
        spread = (expected - expected.mean(0)).norm()
        assert (module(x) - expected).norm() / expected.norm() < 0.03
        assert (module(x) - expected).norm() / spread < 0.10
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    inside = module.state_dict()
    assert all(torch.equal(before[name], inside[name]) for name in before)
    assert not any(parameter.grad is not None for parameter in network.parameters())
    assert not {id(p) for p in network.parameters()} & {id(p) for p in module.parameters()}


def test_bits_follow_the_scheme() -> None:
    module = quantized(Residual, "w2a3", first=6, last=7, sums=5)
    bits = {name: core.bits for name, core in quantizers(module)}
    assert (bits["x_quant"], bits["stem.0.weight"], bits["fc.weight"], bits["pool_quant"]) == (6, 6, 7, 7)
    assert (bits["stem.2"], bits["layer1.relu"], bits["layer1.relu_1"], bits["layer2.relu"]) == (3, 3, 3, 3)
    assert (bits["layer1.bn2_quant"], bits["layer2.down.1_quant"], bits["layer2.relu_1"]) == (5, 5, 5)
    assert {bits[f"layer{i}.conv{j}.weight"] for i in (1, 2) for j in (1, 2)} == {2}


def test_overrides_change_a_layers_weights_and_input(refused: Refused) -> None:
    module = insert(Residual(), Scheme(2, 2, overrides={"layer1.*": "w4a8", "layer1.conv2": "w6a6"}))
    bits = {name: core.bits for name, core in quantizers(module)}
    assert (bits["layer1.conv1.weight"], bits["stem.2"]) == (4, 8)
    assert (bits["layer1.conv2.weight"], bits["layer1.relu"]) == (6, 6)
    assert (bits["layer2.conv1.weight"], bits["layer1.relu_1"]) == (2, 2)
    with refused(SchemeError, "scheme.no-such-layer"):
        insert(Residual(), Scheme(2, 2, overrides={"layer3.conv1": "w4a8"}))


def test_quantizers_know_the_modules_they_follow() -> None:
    module = insert(Residual(), Scheme(4, 4))
    stacks = {str(node.target): where_from(node) for node in module.graph.nodes if node.op == "call_module"}
    assert "layer1" in stacks["layer1.bn2_quant"]
    assert "layer1" in stacks["layer1.relu_1"]
    assert "layer2" in stacks["layer2.down.1_quant"]
    copied = copy.deepcopy(module)
    assert [where_from(node) for node in copied.graph.nodes] == [where_from(node) for node in module.graph.nodes]


def test_a_pre_activation_norm_stays_float_between_quantizers() -> None:
    module = quantized(PreActivation)
    norm = next(node for node in module.graph.nodes if node.target == "norm2")
    assert isinstance(part(module, norm.all_input_nodes[0]), qnn.QuantIdentity)
    assert [isinstance(part(module, user), qnn.QuantReLU) for user in norm.users] == [True]
    assert any(layer.name == "norm2" and layer.bits == 32 for layer in describe(module))


def test_a_graph_and_a_double_network_can_be_given() -> None:
    network = with_statistics(Residual)
    module = insert(trace(network), Scheme(8, 8))
    calibrate(module, [images()])
    wide = insert(network.double(), Scheme(8, 8))
    calibrate(wide, [images().double()])
    with torch.no_grad():
        assert wide(images().double()).dtype == torch.float64
        assert torch.allclose(wide(images().double()).float(), module(images()), atol=0.05)


def test_what_cannot_be_quantized_is_refused(refused: Refused) -> None:
    with refused(SchemeError, "scheme.already-quantized"):
        insert(quantized(Residual), Scheme(4, 4))
    with refused(SchemeError, "scheme.one-signed-bit"):
        insert(Bottleneck(), Scheme(4, 1))


def test_describe_lists_layers_and_quantizers() -> None:
    lines = {line.name: line for line in describe(quantized(Residual, "w2a3"))}
    assert lines["layer1.conv1"][1:] == ("conv", 2, (6, 6, 3, 3), 324)
    assert lines["fc"][1:] == ("linear", 8, (5, 8), 45)
    assert lines["layer1.relu"][1:] == ("relu", 3, (), 0)
    assert lines["x_quant"].kind == "signed"
    assert lines["pool_quant"].kind == "unsigned"
    assert sum(line.parameters for line in lines.values()) == sum(p.numel() for p in Residual().parameters())


def test_one_dimensional_networks() -> None:
    network = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).eval()
    module = insert(network, Scheme(8, 8))
    x = torch.randn(8, 2, 16)
    calibrate(module, [x])
    with torch.no_grad():
        assert (module(x) - network(x)).norm() / network(x).norm() < 0.03
    assert [name for name, _ in quantizers(module)] == [
        "2",
        "input_quant",
        "4_quant",
        "0.weight",
        "4.weight",
        "6.weight",
    ]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "vgg11_bn", "alexnet", "squeezenet1_1", "densenet121", "shufflenet_v2_x0_5"]
)
def test_torchvision_networks_can_be_quantized(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.get_model(name, num_classes=10)
    if name in ("vgg11_bn", "alexnet"):  # the same shape of classifier, without its hundred million weights
        inputs = network.classifier[0 if name == "vgg11_bn" else 1].in_features
        network.classifier = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    network.eval()
    size = 64 if name == "alexnet" else 32
    x = torch.randn(2, 3, size, size)
    module = insert(network, Scheme(4, 4, calibration="minmax"))
    calibrate(module, [x])
    with torch.no_grad(), disabled(module):
        assert torch.allclose(module(x), network(x), atol=1e-5)
    for node in module.graph.nodes:
        if isinstance(part(module, node), LAYERS):
            made_by = [source for source in sources(module, node) if source.op == "call_module"]
            assert all(isinstance(part(module, source), QUANTIZERS) for source in made_by)
