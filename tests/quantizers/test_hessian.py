"""EWGS's delta from the Hessian: the trace of known Hessians, the formula on whole networks, and runs that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.engine import ewgs_delta
from qkd.engine.events import DeltasEstimated, Event
from qkd.errors import DataError, SchemeError
from qkd.pipeline.train import train_recipe
from qkd.quantizers import Scheme, calibrate, compile_cores, estimate_deltas, hessian, insert, needs_delta, quantizers
from qkd.quantizers.ewgs import DELTA, ElementwiseScaling
from qkd.quantizers.fake_quant import FakeQuant
from qkd.storage.run import Run
from tests.support.pairing import paired
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY, recipe_in
from tests.support.tiny_wirings import Residual, images, quantized, with_statistics
from tests.support.watched_deltas import ONE, watched

LABELS = torch.arange(16) % 5


def probed(loss: Tensor, tensors: list[Tensor], probes: int) -> Tensor:
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    return hessian.traces(gradients, tensors, probes, torch.Generator().manual_seed(0))


def test_the_trace_of_a_diagonal_hessian_needs_one_vector() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    curvatures = torch.randn(3, 4)
    found = probed((curvatures * x * x / 2).sum() + x.sum(), [x], 1)
    assert float(found) == pytest.approx(float(curvatures.sum()), rel=1e-5)


def test_traces_are_those_of_each_tensors_own_block() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    x, y = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    whole = torch.cat([x, y])
    found = probed(whole @ matrix @ whole / 2, [x, y], 1500)
    for trace, block in zip(found, (matrix[:5, :5], matrix[5:, 5:]), strict=True):
        # the variance of one vector is twice the sum of the squares off the diagonal
        error = (2 * (block - block.diag().diag()).square().sum() / 1500).sqrt()
        assert abs(trace - block.trace()) < 4 * error


def one_layer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    module = insert(network, Scheme(3, 3, family="ewgs", first=3, last=3, delta="hessian"))
    x = torch.randn(16, 3, 2, 2)
    calibrate(module, [x])
    return module, x


@pytest.mark.parametrize("which", ["input_quant", "1.weight"])
def test_delta_is_the_papers_formula(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole Hessian of one layer, where nothing has to be estimated."""
    monkeypatch.setattr(hessian, "PROBES", 600)
    module, x = one_layer()
    found = estimate_deltas(module, [(x, LABELS)], seed=0)
    cores = dict(quantizers(module))
    core = cores[which]
    layer: Any = module.get_submodule("1")
    with torch.no_grad():
        given, weight = cores["input_quant"].value(x).flatten(1), cores["1.weight"].value(layer.weight)
    width = ((core.high - core.low) * core.scale()).detach()

    def loss(shares: Tensor) -> Tensor:
        one = (shares * width, weight) if which == "input_quant" else (given, shares * width)
        return F.cross_entropy(F.linear(*one, layer.bias), LABELS)

    shares = ((given if which == "input_quant" else weight) / width).detach().requires_grad_()
    matrix = torch.autograd.functional.hessian(loss, shares).reshape(shares.numel(), shares.numel())
    (gradient,) = torch.autograd.grad(loss(shares), shares)
    expected = matrix.trace() / shares.numel() / (3 * gradient.std(correction=0))
    assert found[which] == pytest.approx(float(expected), rel=0.1)
    assert float(core.delta) == pytest.approx(found[which])


def test_a_negative_trace_gives_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = one_layer()
    monkeypatch.setattr(hessian, "traces", lambda gradients, tensors, *_: -torch.ones(len(tensors)))
    assert set(estimate_deltas(module, [(x, LABELS)], seed=0).values()) == {0.0}


def test_nothing_but_delta_changes_and_the_seed_decides(refused: Refused) -> None:
    module = insert(with_statistics(Residual), Scheme(2, 2, family="ewgs", delta="hessian"))
    calibrate(module, [images()])
    module.train()
    before, numbers = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    assert {float(v) for k, v in before.items() if k.endswith("delta")} == {torch.tensor(DELTA).item()}
    with refused(DataError, "data.no-batch"):
        estimate_deltas(module, [], seed=0)
    first = estimate_deltas(module, [(images(), LABELS)], seed=3)
    after = module.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {k for k in after if k.endswith("delta")}
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(part.training for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any("quantize" in vars(core) for core in module.modules() if isinstance(core, FakeQuant))
    assert estimate_deltas(module, [(images(), LABELS)], seed=3) == first
    assert estimate_deltas(module, [(images(), LABELS)], seed=4) != first
    assert len(first) == sum(isinstance(core, ElementwiseScaling) for _, core in quantizers(module))
    assert all(value >= 0 for value in first.values())
    assert any(value > 0 for value in first.values())


@pytest.mark.parametrize("odd", [False, True])
def test_the_gradient_is_scaled_by_the_quantizers_own_delta(odd: bool) -> None:
    core = next(c for _, c in quantizers(one_layer()[0]) if isinstance(c, ElementwiseScaling) and c.odd is odd)
    x = torch.linspace(-1, 1, 60).reshape(5, 12) * (2 * core.high * core.scale())
    g = torch.randn(5, 12)
    assert core.delta is not None
    passed = []
    for delta in (0.0, 0.3):
        core.delta.fill_(delta)
        leaf = x.detach().requires_grad_()
        y = core.value(leaf)
        y.backward(g)
        inside = (x > core.low * core.scale()) & (x < core.high * core.scale())
        share = (x - y.detach()) / ((core.high - core.low) * core.scale())
        assert torch.allclose(leaf.grad, g * inside * (1 + delta * g.sign() * share), atol=1e-6)
        passed.append(leaf.grad)
    assert not torch.equal(*passed)


def test_a_new_delta_is_no_new_graph() -> None:
    module, x = one_layer()
    torch._dynamo.reset()
    step = torch.compile(module, backend="aot_eager", fullgraph=True)
    count = torch._dynamo.utils.counters["stats"]
    gradients = []
    for number, delta in enumerate((0.0, 0.5, 2.0)):
        for _, core in quantizers(module):
            core.delta.fill_(delta)
        module.zero_grad()
        F.cross_entropy(step(x), LABELS).backward()
        gradients.append(module.get_submodule("1").weight.grad.clone())
        if number == 0:
            graphs = count["unique_graphs"]
    assert count["unique_graphs"] == graphs
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[1], gradients[2])


def test_only_ewgs_has_a_delta_and_only_on_request(refused: Refused) -> None:
    with refused(SchemeError, "scheme.delta-without-ewgs"):
        Scheme(2, 2, delta="hessian")
    with refused(SchemeError, "scheme.unknown-delta"):
        Scheme(2, 2, family="ewgs", delta="hesian")
    plain = quantized(Residual, "w2a2", family="ewgs")
    assert not needs_delta(plain)
    assert not [name for name in plain.state_dict() if name.endswith("delta")]
    mixed = quantized(Residual, "w2a2", activation_family="ewgs", delta="hessian")
    named = {name for name, core in quantizers(mixed) if isinstance(core, ElementwiseScaling)}
    compile_cores(mixed)
    assert set(estimate_deltas(mixed, [(images(), LABELS)], seed=0)) == named
    assert not any(name.endswith(".weight") for name in named)


def ewgs(folder: Path) -> Any:
    quantize = {"weights": 2, "activations": 2, "family": "ewgs", "delta": "hessian"}
    student = {**TINY["student"], "quantize": quantize}
    return recipe_in(folder, method={"name": "qat"}, teachers={}, student=student, train={"epochs": 3, "rate": 0.05})


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "PROBES", 1)
    monkeypatch.setattr(ewgs_delta, "BATCHES", 1)


def kept(run: Run) -> dict[str, Tensor]:
    return run.checkpoints.load("last")["parts"]


@pytest.mark.usefixtures("quickly")
def test_a_run_estimates_again_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    for every in (10, 2):
        monkeypatch.setattr(ewgs_delta, "EVERY", every)
        run = Run.create(tmp_path / f"every{every}")
        train_recipe(ewgs(tmp_path), run, ONE, listen=events.append)
        assert all(line["train/loss/labels"] < 100 for line in run.metrics() if "train/loss/labels" in line)
    assert [event.part for event in events if isinstance(event, DeltasEstimated)] == ["student"] * 3
    one, two = kept(Run(tmp_path / "every10")), kept(Run(tmp_path / "every2"))
    names = [name for name in one if name.endswith("delta")]
    assert names
    assert any(float(one[name]) not in (0, DELTA) for name in names)
    assert any(not torch.equal(one[name], two[name]) for name in names)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ewgs_delta, "EVERY", 1)
    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    train_recipe(ewgs(tmp_path), whole, ONE)
    assert train_recipe(ewgs(tmp_path), broken, ONE, max_steps=steps).finished is False
    train_recipe(ewgs(tmp_path), broken, ONE, resume=True)
    one, two = kept(whole), kept(broken)
    assert any(name.endswith("delta") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


PAIR = """
from pathlib import Path
from tests.support.pairing import ranks
from tests.support.watched_deltas import watched
print(*ranks(watched, Path()))
"""


@pytest.mark.slow
def test_two_ranks_estimate_what_one_does_and_stay_equal(in_tmp: Path) -> None:
    student = {**ewgs(in_tmp).student.model_dump(mode="json", exclude={"options"}), "width": 4, "start_from": "scratch"}
    settings = {"epochs": 2, "rate": 0.05, "reestimate": False}
    recipe_in(in_tmp, method={"name": "qat"}, teachers={}, match=[], student=student, train=settings)
    assert paired(in_tmp, script=PAIR)[0] == [0, 0]
    watched()
    one, other, alone = (torch.load(f"{kind}.pt", weights_only=True) for kind in ("0", "1", "alone"))
    assert len(one["deltas"]) == len(one["parts"]) == 2
    assert any(value > 0 for value in alone["deltas"][0].values())
    assert one["deltas"][0] == other["deltas"][0] == alone["deltas"][0]  # from the same images, to the last bit
    assert one["deltas"] == other["deltas"]
    for mine, theirs in zip(one["parts"], other["parts"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
