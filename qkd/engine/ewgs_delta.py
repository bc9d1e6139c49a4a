"""EWGS delta: the gradient scaling of EWGS, estimated from the Hessian every few epochs (Lee et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd.engine.bit_schedule import epochs_done
from qkd.engine.distributed import synchronise
from qkd.engine.events import DeltasEstimated
from qkd.engine.state import TrainingState, shuffle_seed
from qkd.quantizers import estimate_deltas, needs_delta

if TYPE_CHECKING:
    from qkd.distill.plan import Phase
    from qkd.engine.training_context import Training

EVERY, BATCHES = 10, 3
"""Epochs between estimates and batches for one, as in the authors' code."""


def update_deltas(training: Training, phase: Phase, state: TrainingState) -> None:
    """Before an epoch: estimate delta for the networks that learn and need it, if it is time to.

    All ranks see the same images; the values of the first one are used.
    """
    learning = {name: each.network for name, each in training.ensemble.networks.items() if name in phase.parts}
    wanting = {name: network for name, network in learning.items() if needs_delta(network)}
    if not wanting or epochs_done(training, state) % EVERY:
        return
    seed = shuffle_seed(training.seed, state.phase, state.epoch)
    seen = training.data.train_batches(training.batch, seed=seed, device=training.device)
    batches = [(batch.images, batch.labels) for _, batch in zip(range(BATCHES), seen, strict=False)]
    for name, network in wanting.items():
        found = estimate_deltas(network, batches, training.seed)
        synchronise(training.fabric, network)
        training.listen(DeltasEstimated(name, min(found.values()), max(found.values())))
