"""Validation: how good the product is between epochs, and the batch-norm statistics it is judged with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from qkd.assembly.product import untrained_quantizers
from qkd.engine.distributed import all_reduce, shard
from qkd.engine.metrics import logits
from qkd.quantizers import calibrate, quantizers, reestimate_batch_norm

if TYPE_CHECKING:
    from qkd.distill.epoch_statistics import EpochStatistics
    from qkd.engine.train import Training


def validate(training: Training) -> float:
    """Top-1 of the product on the validation split, in percent. Ranks share the work."""
    product = training.parts.product(training.plan)
    if training.reestimate:
        reestimate_batch_norms(training)
    recalibrate_untrained(training)
    counts = torch.zeros(2, dtype=torch.float64)
    for batch in training.data.batches("val", training.batch, device=training.device, shard=shard(training.fabric)):
        right = (logits(product, [batch]).argmax(1) == batch.labels.cpu()).sum()
        counts += torch.stack([right, torch.tensor(len(batch.labels))]).double()
    right, count = all_reduce(training.fabric, counts, "sum").tolist()
    return 100 * (right / count) if count else 0.0  # nothing held back: every epoch is as good, the last one is kept


@torch.no_grad()
def update_statistics(training: Training, *, first: bool) -> None:
    """Let the plan's surveys see their split, before the first or a later epoch. Every rank sees all of it: they agree."""
    due = [each for each in training.parts.surveys.values() if first or not each.once]
    for split in dict.fromkeys(each.split for each in due):
        _show(training, split, [each for each in due if each.split == split])


def _show(training: Training, split: Literal["train", "val"], surveys: Sequence[EpochStatistics]) -> None:
    """One pass over a split for all that want to see it."""
    training.parts.eval()
    active = sorted({tap.part for each in surveys for tap in each.reads if tap.part in training.parts.networks})
    for each in surveys:
        each.begin()
    for batch in training.data.batches(split, training.batch, device=training.device):
        outputs = training.parts(batch.images, active)
        for each in surveys:
            each.see([outputs[tap] for tap in each.reads], batch)
    for each in surveys:
        each.conclude()


def reestimate_batch_norms(training: Training, batches: int = 20) -> None:
    """Re-estimate the product's batch-norm statistics with rounding on.

    Statistics gathered while weights still move, or inherited from the float network, are wrong for a low-bit one. The
    images are changed as in training: weights were learned with those statistics, and others cost points on test
    (EXPERIMENTS.md).
    """
    seen = training.images(training.seed)
    reestimate_batch_norm(
        training.parts.product(training.plan),
        (b.images for _, b in zip(range(batches), seen, strict=False)),
        leave=training.parts.outside(training.plan.learners),
    )


def recalibrate_untrained(training: Training, batches: int = 4) -> None:
    """Fit those quantizers of the product that no phase teaches to what they read now: what stands before them has moved."""
    product, under = training.parts.product(training.plan), untrained_quantizers(training.plan)
    if not any(name.startswith(under) for name, _ in quantizers(product)):
        return
    seen = training.data.train_batches(training.batch, seed=training.seed, device=training.device)
    calibrate(product, (b.images for _, b in zip(range(batches), seen, strict=False)), under=under)
