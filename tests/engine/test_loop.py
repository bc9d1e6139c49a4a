"""What the loop can do beside the plain thing: pieces of a batch, averaged weights, phases, costs, precision, compiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qkd.data import Batch
from qkd.distill.plan import Learner, Phase, Plan, Step
from qkd.distill.terms import label
from qkd.engine.device import Machine
from qkd.engine.ema import Ema
from qkd.engine.events import CompilationStarted, Event
from qkd.engine.loop import first_compared_phase
from qkd.engine.state import shuffle_seed
from qkd.engine.step import _pieces
from qkd.errors import PlanError, UsageError
from qkd.pipeline.train import train_recipe
from qkd.quantizers import calibrate, disabled
from qkd.storage.results import TrainResult
from qkd.storage.run import Run
from qkd.tasks.classification import ece
from tests.support.ensembles import staged
from tests.support.refusals import Refused
from tests.support.tiny_data import MOVED
from tests.support.tiny_runs import ALONE, losses, recipe_in


def test_the_order_of_epochs_is_that_of_a_tuples_hash() -> None:
    for numbers in [(0, 0, 0), (0, 1, 7), (12345, 2, 199)]:
        assert shuffle_seed(*numbers) == hash(numbers) % 2**31


def test_pieces_are_the_batch_and_none_is_a_lone_image() -> None:
    batch = Batch(torch.arange(9.0), torch.arange(9), torch.arange(9))
    pieces = list(_pieces(batch, 4))
    assert [len(piece.labels) for piece, _ in pieces] == [3, 3, 3]
    assert sum(share for _, share in pieces) == pytest.approx(1)
    assert [len(piece.labels) for piece, _ in _pieces(batch, 2)] == [5, 4]
    assert [len(piece.labels) for piece, _ in _pieces(batch, 8)] == [2, 2, 2, 2]
    assert sum(share for _, share in _pieces(batch, 8)) == pytest.approx(1)  # of those that count
    assert list(_pieces(batch, 1)) == [(batch, 1)]


def test_the_average_follows_and_is_put_in_for_a_while() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = Ema(layer, 0.5)
    layer.weight.data.fill_(1.0)
    average.update()
    share = 1 - min(0.5, 2 / 11)
    with average.applied():
        assert layer.weight.item() == pytest.approx(share)
        again = Ema(layer, 0.5)
    assert layer.weight.item() == 1.0
    again.load(average.state())
    assert again.updates == 1
    assert torch.equal(again.kept["weight"], average.kept["weight"])


def test_calibration_error_by_hand() -> None:
    scores = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]]).log()
    labels = torch.tensor([0, 1, 0, 1])
    # confidence 0.8 twice, right once: 2 x |0.5 - 0.8|; 0.6 twice, right twice: 2 x |1 - 0.6|; over 4 images
    assert ece(scores, labels) == pytest.approx((2 * 0.3 + 2 * 0.4) / 4)
    assert ece(torch.tensor([[100.0, 0.0]]), torch.tensor([0])) == pytest.approx(0, abs=1e-6)


def test_the_best_is_chosen_among_phases_that_come_last_for_the_product() -> None:
    def phase(name: str, *learners: str | Learner) -> Phase:
        return Phase(name, (Step(learners, [label("student")]),))

    assert first_compared_phase(Plan((phase("a", "student"),))) == 0
    third = phase("c", Learner("student", "logits"))
    assert first_compared_phase(Plan((phase("a", "student"), phase("b", "teacher"), third))) == 2
    assert first_compared_phase(Plan((phase("a", "student"), phase("b", "teacher")))) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainResult]:
    folder = tmp_path_factory.mktemp("plain")
    run = Run.create(folder / "plain")
    return run, train_recipe(recipe_in(folder, **ALONE), run, Machine("cpu", threads=1))


def test_the_result_tells_calibration_and_cost(plain: tuple[Run, TrainResult]) -> None:
    result = plain[1]
    assert result.ece is not None and 0 <= result.ece <= 1
    assert result.finished is True
    assert result.cost is not None and result.cost.participants is not None
    assert (result.cost.peak_memory_mb or 0) > 100
    [student] = result.cost.participants.values()
    assert 0 < (student.forward_ms or 0) < (student.learn_ms or 0)
    assert (student.parameters or 0) > 1000


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"accumulate": 2}])
def test_settings_change_what_they_say(tmp_path: Path, plain: tuple[Run, Any], setting: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run")
    recipe = recipe_in(tmp_path, **ALONE, train={"epochs": 3, "rate": 0.05, **setting})
    result = train_recipe(recipe, run, Machine("cpu", threads=1))
    assert result.cost is not None and result.cost.batch == 16 // setting.get(
        "accumulate", 1
    )  # no more than training had memory for
    found, expected = losses(run), losses(plain[0])
    if "ema" in setting:  # training is the same, what is deployed is not
        assert [line["train/loss/label/student"] for line in found[1:]] == [
            line["train/loss/label/student"] for line in expected[1:]
        ]
        one, other = run.load_product(), plain[0].load_product()
        assert any(not torch.equal(one[name], other[name]) for name in one if name.endswith("weight"))
    else:
        assert found[1]["train/loss/label/student"] == pytest.approx(expected[1]["train/loss/label/student"], rel=0.2)
        assert found != expected


def test_bf16_trains_to_about_the_same(tmp_path: Path, plain: tuple[Run, Any]) -> None:
    run = Run.create(tmp_path / "run")
    train_recipe(recipe_in(tmp_path, **ALONE), run, Machine("cpu", "bf16", threads=1))
    for found, expected in zip(losses(run)[1:], losses(plain[0])[1:], strict=True):
        assert found["train/loss/label/student"] == pytest.approx(expected["train/loss/label/student"], rel=0.2)


def test_frozen_teachers_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = recipe_in(tmp_path, method={"name": "kd"})
    once, ever = Run.create(tmp_path / "once"), Run.create(tmp_path / "ever")
    train_recipe(frozen, once, Machine("cpu", threads=1))
    monkeypatch.setattr("qkd.engine.teacher_cache.LIMIT", 0)
    train_recipe(frozen, ever, Machine("cpu", threads=1))
    for found, expected in zip(losses(once)[1:], losses(ever)[1:], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_only_what_stays_the_same_is_worth_knowing(tmp_path: Path) -> None:
    from qkd.assembly.assemble import assemble
    from qkd.engine.teacher_cache import cacheable_taps
    from qkd.tasks.spec import DataSpec

    def taps(**method: Any) -> set[str]:
        plan = assemble(recipe_in(tmp_path, method=method), DataSpec((3, 16, 16), 4)).plan
        return {str(tap) for tap in cacheable_taps(plan, plan.phases[0])}

    assert taps(name="kd") == {"four.logits", "eight.logits"}
    assert taps(name="cmtkd") == set()
    assert taps(name="cmtkd", teachers="frozen") == set()  # their importance learns
    shared = {"shared.layer1", "shared.layer2", "shared.logits"}
    assert taps(name="cmtkd", teachers="frozen", importance="uniform") == shared
    assert taps(name="cmtkd", teachers="frozen", importance="uniform", feature="lattice") == set()  # heads read them


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, False),
        ({"augment": False}, True),
        ({"augment": False, "cutout": 4}, False),
        ({"augment": False, "mixup": 0.2}, False),
    ],
)
def test_teachers_are_asked_once_only_where_images_stay_the_same(
    tmp_path: Path, settings: dict[str, Any], known: bool
) -> None:
    from qkd.assembly.assemble import assemble
    from qkd.assembly.inputs import load_data, spec_of
    from qkd.engine.teacher_cache import build_teacher_cache
    from qkd.engine.training_context import Training

    (tmp_path / "own.py").write_text(MOVED)
    data = {"name": f"{tmp_path / 'own.py'}:moved", "batch": 16}
    recipe = recipe_in(tmp_path, method={"name": "kd"}, data=data, train={"epochs": 2, **settings})
    images = load_data(recipe)
    assembly = assemble(recipe, spec_of(images))
    training = Training(assembly.ensemble, assembly.plan, images, recipe.train, 16, 0, Machine("cpu").fabric())
    with disabled(assembly.ensemble):
        found = build_teacher_cache(training, assembly.ensemble, assembly.plan.phases[0], 2)
        assert (found is not None) == known
        if found is not None:
            batch = next(images.train_batches(16, seed=5))
            said = assembly.ensemble.eval()(batch.images, ["four", "eight"])
            assert all(torch.allclose(tensor, said[tap], atol=1e-5) for tap, tensor in found.of(batch.ids).items())


@pytest.mark.parametrize("device", ["cuda:99", "cpu:0", "tpu", "abacus"])
def test_a_machine_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}"):
        Machine(device).fabric()


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path: Path, plain: tuple[Run, Any]) -> None:
    events: list[Event] = []
    run = Run.create(tmp_path / "run")
    train_recipe(
        recipe_in(tmp_path, **ALONE),
        run,
        Machine("cpu", threads=1, compile="on"),
        listen=events.append,
    )
    assert any(isinstance(event, CompilationStarted) for event in events)
    for found, expected in zip(losses(run)[1:], losses(plain[0])[1:], strict=True):
        assert found["train/loss/label/student"] == pytest.approx(expected["train/loss/label/student"], rel=0.1)


def test_auto_compiles_long_runs_only(tmp_path: Path) -> None:
    from qkd.assembly.assemble import assemble
    from qkd.assembly.inputs import spec_of
    from qkd.data import load
    from qkd.engine import compile
    from qkd.engine.training_context import Training

    def training(epochs: int) -> Training:
        recipe = recipe_in(tmp_path, train={"epochs": epochs})
        data = load(recipe.data.name, recipe.data.options)
        assembly = assemble(recipe, spec_of(data))
        return Training(assembly.ensemble, assembly.plan, data, recipe.train, 16, 0, Machine("cpu").fabric())

    short, long = training(3), training(3_000_000)
    assert compile.operations(long) == pytest.approx(1e6 * compile.operations(short))
    assert not compile.should_compile(short, "auto")
    assert compile.should_compile(long, "auto")
    assert compile.should_compile(short, "on")
    assert not compile.should_compile(long, "off")


def test_what_cannot_be_compiled_stays_eager_or_is_refused(tmp_path: Path, refused: Refused) -> None:
    from qkd.engine import compile
    from qkd.errors import TrainingError

    def fail() -> None:
        raise RuntimeError("no C++ compiler\nand more")

    assert compile.try_compiled(nn.Module(), "auto", fail) == "no C++ compiler"
    with refused(TrainingError, "training.not-compiled"):
        compile.try_compiled(nn.Module(), "on", fail)


def gradients_of(method: str, recomputed: bool, family: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients and the state after one step of a method's first phase."""
    from qkd import recipe as recipes
    from qkd.assembly.assemble import assemble
    from qkd.distill.plan import networks_needed
    from qkd.distill.terms import weighted_sum
    from qkd.tasks.spec import DataSpec

    scheme = f"student.quantize={{weights: 3, activations: 3, family: {family}}}"
    assembly = assemble(recipes.load(f"digits_{method}_w2a2", [scheme, "pretrain.epochs=1"]), DataSpec((1, 16, 16), 10))
    parts, step = assembly.ensemble, assembly.plan.phases[0].steps[0]
    for network in parts.networks.values():
        calibrate(network.network, [torch.randn(8, 1, 16, 16)])
    if assembly.plan.deployed():
        calibrate(assembly.product(), [torch.randn(8, 1, 16, 16)], under="heads.")
    parts.recomputed = frozenset(parts.networks) if recomputed else frozenset()
    parts.set_learners(step.learners)
    torch.manual_seed(3)
    batch = Batch(torch.randn(8, 1, 16, 16), torch.arange(8), torch.arange(8))
    outputs = parts(batch.images, sorted(networks_needed(assembly.plan, step)))
    weighted_sum({term.name: term(outputs, batch) for term in step.terms}, step.terms, 0.5).backward()
    gradients = {name: p.grad for name, p in parts.named_parameters() if p.grad is not None}
    return gradients, dict(parts.state_dict())


@pytest.mark.parametrize(
    ("method", "family"), [("cmtkd", "lsq"), ("atsc", "ewgs"), ("iakd", "pact"), ("qat", "dorefa")]
)
def test_what_is_computed_again_is_the_same_to_the_last_bit(method: str, family: str) -> None:
    torch.manual_seed(1)
    kept = gradients_of(method, False, family)
    torch.manual_seed(1)
    again = gradients_of(method, True, family)
    for before, after in zip(kept, again, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_computes_again_is_the_same_and_keeps_less(tmp_path: Path, refused: Refused) -> None:
    kept, again = Run.create(tmp_path / "kept"), Run.create(tmp_path / "again")
    recipe = recipe_in(tmp_path, train={"epochs": 2, "rate": 0.05})
    train_recipe(recipe, kept, Machine("cpu", threads=1))
    recipe = recipe_in(tmp_path, train={"epochs": 2, "rate": 0.05, "recompute": ["student", "four"]})
    train_recipe(recipe, again, Machine("cpu", threads=1))
    assert losses(kept) == losses(again)
    one, other = kept.load_product(), again.load_product()
    assert all(torch.equal(one[name], other[name]) for name in one)
    recipe = recipe_in(tmp_path, train={"epochs": 2, "recompute": ["studnet"]})
    with refused(PlanError, "train.recompute.no-such-network"):
        train_recipe(recipe, Run.create(tmp_path / "none"), Machine("cpu", threads=1))


def test_the_statistics_of_batch_norm_are_not_gathered_twice() -> None:
    from qkd.assembly.activation_checkpointing import advance

    network = staged(0).train()
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    flow: tuple[Any, ...] = (images,)
    for stage in network.names:
        flow = advance(network, stage, flow)
    seen = {name: buffer.clone() for name, buffer in network.named_buffers()}
    saved: list[int] = []
    flow[0].sum().backward()
    assert all(torch.equal(seen[name], buffer) for name, buffer in network.named_buffers())
    assert images.grad is not None

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network(images)
        whole, flow = sum(saved), (images,)
        saved.clear()
        for stage in network.names:
            flow = advance(network, stage, flow)
    assert sum(saved) < whole / 4
