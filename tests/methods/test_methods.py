"""One contract, every method, at float, W4A4 and W2A2: it is tested because it is in METHODS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qkd import recipe as recipes
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.data import Batch, Data
from qkd.distill.plan import Phase, networks_needed
from qkd.distill.terms import weighted_sum
from qkd.engine.optimizer import optimizer_for, set_rate
from qkd.export import emit, emulate, predict
from qkd.methods import METHODS
from qkd.quantizers import calibrate
from qkd.recipe import NetworkEntry, Recipe
from qkd.tasks.spec import DataSpec
from tests.support.papers import PAPERS

BITS = ("off", "w4a4", "w2a2")
NEVER_FLOAT = ("speq",)  # its teacher is the student at other bits
CONTRACTS = [(n, bits) for n in METHODS for bits in BITS if bits != "off" or n not in NEVER_FLOAT]


class Stage(NamedTuple):
    """A method assembled on tiny networks and learnable images."""

    recipe: Recipe
    data: Data
    assembly: Assembly


def small(name: str, bits: str) -> Recipe:
    """The method's digits recipe, made tiny: the same parts and options, shallow and four channels wide, on drawn images."""
    recipe = recipes.load(f"digits_{name}_w2a2")
    keys = [part if part == "student" else f"teachers.{part}" for part in recipe.owners]
    widths = [f"{key}.{change}" for key in keys for change in ("build=resnet8", "width=4")]
    drawn = "data={name: fake, batch: 16, size: 16, train: 64, test: 16, classes: 4}"
    return recipes.load(f"digits_{name}_w2a2", [*widths, drawn, f"student.quantize={bits}"])


def trained(part: str, entry: NetworkEntry, network: nn.Module) -> None:
    """Weights of its own for each part, as after training: who learns from a copy of itself alone has something to learn."""
    generator = torch.Generator().manual_seed(crc32(part.encode()))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))


def staged(name: str, bits: str) -> Stage:
    torch.manual_seed(0)
    recipe = small(name, bits)
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data), start=trained)
    images = [batch.images for batch in data.batches("train", 16)]
    for part, network in assembly.ensemble.owners.items():
        if recipe.owners[part].quantize is not None:
            calibrate(network.network, images)
    if assembly.plan.deployed() and bits != "off":
        calibrate(assembly.product(), images, under="heads.")
    return Stage(recipe, data, assembly)


def steps(stage: Stage, phase: Phase, count: int) -> Iterator[float]:
    """Train by hand, without the loop, in the middle of a phase: losses of unequal weights say nothing. -> total losses"""
    parts, plan = stage.assembly.ensemble, stage.assembly.plan
    optimizers = [optimizer_for(step, parts, plan, stage.recipe.train) for step in phase.steps]
    batches: list[Batch] = list(stage.data.train_batches(16, seed=0))
    for number in range(count):
        batch, total = batches[number % len(batches)], 0.0
        for step, optimizer in zip(phase.steps, optimizers, strict=True):
            set_rate(optimizer, 0.02)
            parts.set_learners(step.learners)
            outputs = parts(batch.images, sorted(networks_needed(plan, step)), number / count)
            loss = weighted_sum({term.name: term(outputs, batch) for term in step.terms}, step.terms, 0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        yield total


@pytest.fixture(scope="module", params=CONTRACTS, ids=lambda p: "-".join(p))
def built(request: pytest.FixtureRequest) -> tuple[Stage, dict[str, Tensor]]:
    stage = staged(*request.param)
    return stage, {name: tensor.clone() for name, tensor in stage.assembly.ensemble.state_dict().items()}


@pytest.fixture
def stage(built: tuple[Stage, dict[str, Tensor]]) -> Stage:
    """Assembled once, as new for every test."""
    stage, state = built
    stage.assembly.ensemble.load_state_dict(state)
    stage.assembly.ensemble.zero_grad(set_to_none=True)
    return stage


def test_only_the_learners_move_and_the_loss_falls(stage: Stage) -> None:
    parts = stage.assembly.ensemble
    for phase in stage.assembly.plan.phases:
        before = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
        losses = list(steps(stage, phase, 20))
        assert np.isfinite(losses).all()
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
        after = parts.state_dict()
        learners = phase.parts
        for part in (*parts.owners, *parts.heads, "exchange"):
            own = parts.part(part).state_dict()
            known = parts.networks.registered.get(part, part)
            home = f"networks.{known}" if part in parts.networks else f"heads.{part}" if part in parts.heads else part
            moved = [name for name in own if not torch.equal(before[f"{home}.{name}"], after[f"{home}.{name}"])]
            assert bool(moved) is (part in learners and bool(own)), part


def test_every_terms_gradient_reaches_a_learner(stage: Stage) -> None:
    parts, plan = stage.assembly.ensemble, stage.assembly.plan
    batch = next(iter(stage.data.batches("train", 16)))
    for phase in plan.phases:
        list(steps(stage, phase, 2))  # who is still where he began is not pulled back to it yet
        for step in phase.steps:
            parts.set_learners(step.learners)
            for term in step.terms:
                parts.zero_grad(set_to_none=True)
                loss = term(parts(batch.images, sorted(networks_needed(plan, step))), batch)
                loss.backward()
                assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parts.parameters()), term.name


def test_the_product_classifies_and_leaves_as_integers(stage: Stage) -> None:
    for phase in stage.assembly.plan.phases:
        list(steps(stage, phase, 4))
    product = stage.assembly.product().eval()
    images = next(iter(stage.data.batches("test", 16))).images
    with torch.no_grad():
        logits = product(images)
    assert logits.shape == (16, 4)
    if stage.recipe.student.quantize is None:
        return
    emitted = emit(product, stage.data.shape)
    assert emitted.float_layers == ()
    array = images.contiguous().numpy()
    assert np.array_equal(predict(emitted.model, array), emulate(emitted.model, array))


def test_same_seed_same_losses(stage: Stage) -> None:
    again = staged(stage.recipe.method.name, str(stage.recipe.student.quantize or "off"))
    for one, two in zip(stage.assembly.plan.phases, again.assembly.plan.phases, strict=True):
        torch.manual_seed(3)
        first = list(steps(stage, one, 3))
        torch.manual_seed(3)
        assert first == list(steps(again, two, 3))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_and_says_what_it_is(name: str) -> None:
    assert f"digits_{name}_w2a2" in recipes.bundled()
    assert METHODS[name].__doc__


@pytest.mark.parametrize("name", [name for name in recipes.bundled() if name not in PAPERS])
def test_every_recipe_assembles(name: str) -> None:
    recipe = recipes.load(name, paths_exist=False)
    assemble(recipe, DataSpec((3, 32, 32), 10) if recipe.data.name == "folder" else spec_of(load_data(recipe)))
