"""qkd's loop beside the one by hand: both read the data set's own batches, cut and flipped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from distilling import STEPS, by_hand, networks
from task import Job, cost, job

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.data import Data
from qkd.distill.plan import networks_needed
from qkd.engine.device import Machine
from qkd.engine.loop import Loop
from qkd.engine.optimizer import optimizer_for
from qkd.engine.signals import InterruptHandler
from qkd.engine.state import EpochProgress, TrainingState
from qkd.engine.step import Action
from qkd.engine.training_context import Training

EPOCHS = 1000


def recipe_of(asked: Job) -> recipes.Recipe:
    words = [
        "method={name: kd, temperature: 4, soft: 0.9, feature: attention}",
        "match=[layer1, layer2, layer3]",
        "student={build: resnet20, quantize: off, start_from: scratch}",
        "teachers={float: {build: resnet20, width: 32, quantize: off, start_from: scratch}}",
        f"data={{name: fake, size: 32, batch: {asked.batch}, train: {STEPS * asked.batch}, test: 16}}",
        f"train={{epochs: {EPOCHS}, optimizer: sgd, rate: 0.001}}",
    ]
    return recipes.load("digits_kd_w2a2", words)


def loop(recipe: recipes.Recipe, data: Data, asked: Job) -> Callable[[], object]:
    """One epoch of the engine's loop, without evaluation and checkpoint."""
    fabric = Machine("cpu", threads=1).fabric()
    assembly = assemble(recipe, spec_of(data))
    assembly.ensemble.to(memory_format=torch.channels_last)
    training = Training(assembly.ensemble, assembly.plan, data, recipe.train, asked.batch, 0, fabric)
    running = Loop(training, fabric.setup_module(assembly.ensemble), TrainingState(epoch=1), InterruptHandler(3600))
    [phase] = assembly.plan.phases
    [step] = phase.steps
    optimizer = fabric.setup_optimizers(optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train))
    running.actions = [Action(step, sorted(networks_needed(assembly.plan, step)), optimizer)]
    return lambda: running._run_batches(phase, EPOCHS, EpochProgress())


if __name__ == "__main__":
    with job() as asked:
        recipe = recipe_of(asked)
        data = load_data(recipe)

        def given() -> list[tuple[torch.Tensor, torch.Tensor]]:
            seen = data.train_batches(asked.batch, seed=1, augment=True)
            return [(batch.images, batch.labels) for batch in seen]

        cost(asked, {"by hand": by_hand(*networks(), given), "qkd": loop(recipe, data, asked)}, "by hand")
