"""Validation: the accuracy of the product between epochs, and the plan's epoch statistics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from qkd.assembly.product import untrained_quantizers
from qkd.engine.distributed import all_reduce, shard
from qkd.engine.metrics import logits
from qkd.engine.reestimation import reestimate_networks, reestimate_product
from qkd.quantizers import calibrate, quantizers

if TYPE_CHECKING:
    from qkd.distill.epoch_statistics import EpochStatistics
    from qkd.engine.training_context import Training


def validate(training: Training) -> float:
    """Top-1 of the product on the validation split, in percent. Ranks share the work."""
    product = training.ensemble.product(training.plan)
    if training.reestimates_product:
        reestimate_product(training)
    recalibrate_untrained(training)
    counts = torch.zeros(2, dtype=torch.float64)
    for batch in training.data.batches("val", training.batch, device=training.device, shard=shard(training.fabric)):
        right = (logits(product, [batch]).argmax(1) == batch.labels.cpu()).sum()
        counts += torch.stack([right, torch.tensor(len(batch.labels))]).double()
    right, count = all_reduce(training.fabric, counts, "sum").tolist()
    return 100 * (right / count) if count else 0.0  # without a validation split the last epoch is kept


@torch.no_grad()
def update_statistics(training: Training, *, learning: Collection[str], first: bool, progress: float) -> None:
    """Measure the plan's epoch statistics on their splits; ``first``: before the first epoch.

    Every rank measures on all of a split, so that all get the same result. ``learning``: the parts that learn in this phase,
    whose batch-norm statistics are re-estimated before they are measured.
    """
    due = [each for each in training.ensemble.statistics.values() if first or not each.once]
    read = {tap.part for each in due for tap in each.reads}
    reestimate_networks(training, read.intersection(learning))
    for split in dict.fromkeys(each.split for each in due):
        _measure(training, [each for each in due if each.split == split], progress)


def _measure(training: Training, statistics: Sequence[EpochStatistics], progress: float) -> None:
    """One pass over a split for all statistics that are measured on it."""
    ensemble, split = training.ensemble.eval(), statistics[0].split
    active = sorted({tap.part for each in statistics for tap in each.reads if tap.part in ensemble.networks})
    for each in statistics:
        each.reset()
    for batch in training.data.batches(split, training.batch, device=training.device):
        outputs = ensemble(batch.images, active, progress)
        for each in statistics:
            each.update([outputs[tap] for tap in each.reads], batch)
    for each in statistics:
        each.compute()


def recalibrate_untrained(training: Training, batches: int = 4) -> None:
    """Calibrate again those quantizers of the product that no phase trains: the layers before them have changed."""
    product = training.ensemble.product(training.plan)
    under = untrained_quantizers(training.plan, training.ensemble.heads)
    if not any(name.startswith(under) for name, _ in quantizers(product)):
        return
    seen = training.data.train_batches(training.batch, seed=training.seed, device=training.device)
    calibrate(product, (b.images for _, b in zip(range(batches), seen, strict=False)), under=under)
