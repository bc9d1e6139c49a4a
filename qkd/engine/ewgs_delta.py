"""Deltas: EWGS's gradient scaling, estimated anew from the Hessian every so many epochs of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd.engine.bit_schedule import epochs_done
from qkd.engine.distributed import synchronise
from qkd.engine.state import TrainingState, shuffle_seed
from qkd.quantizers import estimate_deltas, needs_delta

if TYPE_CHECKING:
    from qkd.distill.plan import Phase
    from qkd.engine.train import Training

EVERY, BATCHES = 10, 3
"""Epochs between estimates and batches for one, as in the authors' code."""


def update_deltas(training: Training, phase: Phase, cursor: TrainingState) -> None:
    """Before an epoch: estimate delta for the networks that learn and ask for it, if it is time to.

    All ranks look at the same images, and the first one's values hold.
    """
    learners = {who.partition(".")[0] for step in phase.steps for who in step.learners}
    asking = {
        n: net.network for n, net in training.parts.networks.items() if n in learners and needs_delta(net.network)
    }
    if not asking or epochs_done(training, cursor) % EVERY:
        return
    seed = shuffle_seed(training.seed, cursor.phase, cursor.epoch)
    seen = training.data.train_batches(training.batch, seed=seed, device=training.device)
    batches = [(batch.images, batch.labels) for _, batch in zip(range(BATCHES), seen, strict=False)]
    for name, network in asking.items():
        found = estimate_deltas(network, batches, training.seed)
        synchronise(training.fabric, network)
        training.listen("deltas", {"part": name, "least": min(found.values()), "most": max(found.values())})
