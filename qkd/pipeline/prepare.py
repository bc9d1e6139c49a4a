"""Prepare: quantizers and batch norms of all networks get their scales and statistics from images, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qkd.assembly.assemble import Assembly
from qkd.assembly.build import STUDENT
from qkd.data import Data
from qkd.engine.bit_schedule import apply_bit_schedule
from qkd.engine.distributed import synchronised
from qkd.engine.events import Calibrated
from qkd.engine.metrics import test_top1
from qkd.engine.reestimation import reestimate_networks, reestimate_product
from qkd.engine.training_context import Training
from qkd.quantizers import calibrate
from qkd.storage.artifacts import CALIBRATED

if TYPE_CHECKING:
    from qkd.distill.plan import Plan
    from qkd.recipe import Recipe

CALIBRATION_IMAGES = 1024
FEW_BITS = 6  # a calibrated W6A6 network gains a point on CIFAR-10 by re-estimation, one of W8A8 nothing


def reestimated_networks(recipe: Recipe, plan: Plan) -> frozenset[str]:
    """The networks whose batch-norm statistics are re-estimated, as ``train.reestimate`` says.

    With auto those of few bits, and quantized members of an exchange: they read features of the others.
    """
    asked = recipe.train.reestimate
    quantized = {part: entry.quantize for part, entry in recipe.owners.items() if entry.quantize is not None}
    if asked != "auto":
        return frozenset({STUDENT, *quantized} if asked else ())
    few = {part for part, scheme in quantized.items() if min(scheme.weights, scheme.activations) <= FEW_BITS}
    return frozenset(few | (quantized.keys() & set(plan.exchange.members)))


def prepare(training: Training, assembly: Assembly, data: Data) -> float:
    """Calibrate all networks on training images, and re-estimate statistics. -> top-1 of the product on the test split, in %"""
    torch.manual_seed(training.seed)
    count = max(1, CALIBRATION_IMAGES // training.batch)
    seen = data.train_batches(training.batch, seed=training.seed, device=training.device)
    images = [batch.images for _, batch in zip(range(count), seen, strict=False)]
    apply_bit_schedule(training, 0, keep_range=False)  # there is no range to keep yet
    for staged in training.ensemble.owners.values():
        calibrate(staged.network, images)
    if assembly.plan.deployed():
        calibrate(assembly.product(), images, under="heads.")
    training.ensemble.start_averages()  # they may run while statistics are re-estimated
    with synchronised(training.fabric, training.ensemble):  # over the images of all ranks, as in training
        reestimate_networks(training, set(training.ensemble.owners) - {assembly.plan.product})
        if training.reestimates_product:
            reestimate_product(training)
    before = test_top1(assembly.product(), data, training.batch, training.device)
    assert training.run is not None
    training.run.append_metrics({"phase": CALIBRATED, "steps": 0, "test/top1": before})
    training.listen(Calibrated(before))
    return before
