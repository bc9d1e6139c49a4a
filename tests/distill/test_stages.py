"""Cutting: identical output in both modes, at any module path; clear refusals."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.distill.stages import cut
from qkd.errors import NetworkError
from qkd.networks import NETWORKS
from qkd.networks.tracing import trace
from qkd.quantizers import Scheme, insert
from tests.support.refusals import Refused

CUTS = [
    ("resnet18", ["layer1", "layer2", "layer3"]),
    ("mobilenet_v2", ["features.6", "features.13"]),
    ("squeezenet1_1", ["features.5"]),
    ("densenet121", ["features.denseblock1"]),
    ("shufflenet_v2_x1_0", ["stage2"]),
]


def _same(network: nn.Module, at: list[str], images: Tensor) -> None:
    staged = cut(network, at)
    assert staged.names == (*at, "logits")
    for training in (False, True):
        network.train(training)
        staged.train(training)
        torch.manual_seed(1)
        expected = network(images)
        torch.manual_seed(1)
        assert torch.equal(staged(images), expected)


@pytest.mark.parametrize(("name", "at"), CUTS, ids=[name for name, _ in CUTS])
def test_torchvision_networks_cut_with_identical_output(name: str, at: list[str]) -> None:
    network = torchvision.models.get_model(name, weights=None, num_classes=5)
    _same(network, at, torch.randn(2, 3, 64, 64))


def test_our_networks_cut_and_share_parameters() -> None:
    network = NETWORKS["resnet8"](classes=4, channels=1, width=4)
    _same(network, ["layer1", "layer2"], torch.randn(2, 1, 16, 16))
    staged = cut(network, ["layer1"])
    assert {id(p) for p in staged.parameters()} == {id(p) for p in network.parameters()}
    assert [name.removeprefix("network.") for name in staged.state_dict()] == list(network.state_dict())


class Skip(nn.Module):
    """What is needed again behind the cut travels across it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = F.dropout(self.two(y), 0.5, self.training)
        return (z * self.scale + self.offset + x).mean((2, 3)).view(x.size(0), -1)


def test_skip_connections_cross_the_cut() -> None:
    _same(Skip(), ["one"], torch.randn(2, 3, 8, 8))


def test_moving_keeps_stages_and_network_together() -> None:
    staged = cut(Skip().eval(), ["one"]).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(staged(images), staged.network(images))


def test_modules_of_a_stage_are_its_layers() -> None:
    staged = cut(NETWORKS["resnet8"](classes=4, width=4), ["layer1", "layer3"])
    linear = [m for m in staged.modules_of("logits") if isinstance(m, nn.Linear)]
    assert len(linear) == 1
    counts = [sum(1 for _ in staged.modules_of(stage)) for stage in staged.names]
    assert sum(counts) == sum(1 for n in trace(staged.network).graph.nodes if n.op == "call_module")


def test_unknown_path_suggests_and_lists(refused: Refused) -> None:
    network = NETWORKS["resnet8"](classes=4, width=4)
    with refused(NetworkError, "match.unknown-module"):
        cut(network, ["layr1"])


def test_order_is_that_of_the_network(refused: Refused) -> None:
    with refused(NetworkError, "match.wrong-order"):
        cut(NETWORKS["resnet8"](classes=4, width=4), ["layer2", "layer1"])


def test_a_module_called_twice_is_no_place_to_cut(refused: Refused) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(x) - 1)

    with refused(NetworkError, "match.called-more-than-once"):
        cut(Twice(), ["relu"])


def test_a_module_called_twice_is_none_either_where_each_call_has_a_quantizer_of_its_own(refused: Refused) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.relu, self.last = nn.ReLU(), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu(self.two(self.relu(self.one(x)))))

    quantized = insert(Shared(), Scheme(4, 4))
    with refused(NetworkError, "match.called-more-than-once"):
        cut(quantized, ["relu"])
    assert cut(quantized, ["one", "two"]).names == ("one", "two", "logits")


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Host(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


def test_what_cannot_be_traced_is_named_with_the_way_out(refused: Refused) -> None:
    with refused(NetworkError, "network.cannot-be-traced"):
        trace(Host(Branch()))
    Branch.is_leaf = True
    try:
        assert trace(Host(Branch()))(torch.ones(2)).tolist() == [2.0, 2.0]
    finally:
        del Branch.is_leaf


def test_modes_that_differ_by_more_than_a_flag_are_refused(refused: Refused) -> None:
    class Auxiliary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * 2 if self.training else torch.relu(x)

    with refused(NetworkError, "network.modes-differ"):
        trace(Host(Auxiliary()))


def test_functional_dropout_follows_the_mode() -> None:
    traced = trace(Skip())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced.eval()(images), traced(images))
    assert not torch.equal(traced.train()(images), traced(images))
