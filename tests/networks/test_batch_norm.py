"""Every batch norm of a network becomes one kind of layer: with the same numbers, and known to several ranks."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkd.engine.distributed import synchronise
from qkd.errors import NetworkError
from qkd.networks.batch_norm import BatchNorm, other_batch_norms, replace_batch_norms
from qkd.networks.tracing import trace
from qkd.quantizers.node_kinds import kinds
from tests.support.refusals import Refused


class Plain(nn.BatchNorm2d):
    """A subclass that only sets a default."""

    def __init__(self, features: int) -> None:
        super().__init__(features, momentum=0.3)


class Doubled(nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


SIZES = {nn.BatchNorm1d: (6, 4), nn.BatchNorm2d: (6, 4, 3, 3), nn.BatchNorm3d: (6, 4, 2, 3, 3), Plain: (6, 4, 3, 3)}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_a_replaced_layer_computes_the_same_bits(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    before = nn.Sequential(kind(4)).train(training)  # type: ignore[call-arg]
    after = replace_batch_norms(copy.deepcopy(before))
    assert isinstance(after[0], BatchNorm)
    assert isinstance(after[0], kind)
    assert type(after[0]).__name__ == kind.__name__
    x = torch.randn(SIZES[kind])
    assert torch.equal(before(x), after(x))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())


def test_a_layer_used_twice_stays_one_layer() -> None:
    shared = nn.BatchNorm2d(4)
    network = replace_batch_norms(nn.Sequential(shared, nn.ReLU(), shared))
    assert network[0] is network[2]
    assert network[0].weight is shared.weight


def test_a_sync_batch_norm_runs_on_the_cpu() -> None:
    network = replace_batch_norms(nn.Sequential(nn.SyncBatchNorm(4)))
    x = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(network(x), nn.BatchNorm2d(4)(x))
    assert network[0](torch.randn(6, 4)).shape == (6, 4)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Plain, nn.SyncBatchNorm], ids=lambda kind: kind.__name__)
def test_quantizers_are_inserted_as_around_torchs_layer(kind: type[nn.Module]) -> None:
    graph = trace(replace_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), kind(4), nn.ReLU())))  # type: ignore[call-arg]
    assert [found for node, found in kinds(graph).items() if node.op == "call_module"] == ["layer", "norm", "relu"]


def test_it_is_one_node_when_traced() -> None:
    network = replace_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), Plain(4)))
    assert [str(node.target) for node in trace(network).graph.nodes if node.op == "call_module"] == ["0", "1"]


def test_a_forward_of_its_own_is_refused_on_several_ranks_by_name(refused: Refused) -> None:
    network = replace_batch_norms(nn.Sequential(nn.BatchNorm2d(4), Doubled(4)))
    assert [name for name, _ in other_batch_norms(network)] == ["1"]
    fabric: Any = SimpleNamespace(world_size=2)
    with refused(NetworkError, "network.batch-norm-of-its-own"):
        synchronise(fabric, network)
