"""Re-estimation: when and in which networks of an ensemble batch-norm statistics are measured anew, with rounding on.

Those of a float network, and running averages over moving weights, are wrong for one of few bits: it would be evaluated, and
teach, below what it can do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from qkd.engine.compile import uncompiled
from qkd.quantizers import reestimate_batch_norm

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

BATCHES = 20
"""Batches of training images for one re-estimation: 2560 images of the default batch, or the whole split if that is less."""


def reestimate_product(training: Training) -> None:
    """Re-estimate the batch norms of the product that belong to learners, as it is deployed: alone."""
    reestimate_batch_norm(
        training.ensemble.product(training.plan),
        _images(training),
        leave=training.ensemble.modules_outside(training.plan.learners),
    )


def reestimate_networks(training: Training, names: Collection[str], *, leave_product: bool = False) -> None:
    """Re-estimate the batch norms of those networks among ``names`` that the recipe wants it for, in one pass for all.

    They run in the ensemble, with the exchange: a teacher that continues from fused features normalises those, and its own
    features alone have other means. So where one member of the exchange is re-estimated, its other members run beside it.
    ``leave_product``: layers that belong to the product keep the statistics with which it was validated.
    """
    ensemble, plan = training.ensemble, training.plan
    wanted = [name for name in ensemble.owners if name in names and name in training.reestimated]
    if not wanted:
        return
    members = plan.exchange.members
    active = sorted({*wanted, *(members if set(members) & set(wanted) else ())})
    inside = {module for name in wanted for module in ensemble.networks[name].modules()}
    if leave_product:
        inside -= set(ensemble.product(plan).modules())
    with uncompiled():
        reestimate_batch_norm(
            ensemble,
            _images(training),
            leave=set(ensemble.modules()) - inside,
            run=lambda images: ensemble(images, active),
        )


def stopped_learning(training: Training, phase: int) -> set[str]:
    """The networks whose statistics are to be re-estimated at the beginning of a phase: they learned in the one before.

    Where that is a member of the exchange, so are all members that do not learn now: what they read has changed.
    """
    if phase == 0:
        return set()
    before, now = (training.plan.phases[index].parts for index in (phase - 1, phase))
    stopped, members = set(before - now), set(training.plan.exchange.members)
    return stopped | (members - now) if stopped & members else stopped


def _images(training: Training) -> Iterator[Tensor]:
    """Images augmented as in training: with others a low-bit product loses points on test (EXPERIMENTS.md)."""
    return (batch.images for batch in islice(training.images(training.seed), BATCHES))
