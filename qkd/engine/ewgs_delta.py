"""Deltas: EWGS's gradient scaling, estimated anew from the Hessian every so many epochs of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd.engine.bit_schedule import epochs_done
from qkd.engine.distributed import align
from qkd.engine.state import Cursor, order
from qkd.quantizers import curved, estimate_deltas

if TYPE_CHECKING:
    from qkd.distill.plan import Phase
    from qkd.engine.train import Training

EVERY, BATCHES = 10, 3
"""Epochs between estimates and batches for one, as in the authors' code."""


def estimate(training: Training, phase: Phase, cursor: Cursor) -> None:
    """Before an epoch: estimate delta for the networks that learn and ask for it, if it is time to.

    All ranks look at the same images, and the first one's values hold.
    """
    learners = {who.partition(".")[0] for step in phase.steps for who in step.learners}
    asking = {n: net.network for n, net in training.parts.networks.items() if n in learners and curved(net.network)}
    if not asking or epochs_done(training, cursor) % EVERY:
        return
    seed = order(training.seed, cursor.phase, cursor.epoch)
    seen = training.data.batches("train", training.batch, shuffle_seed=seed, device=training.device)
    batches = [(batch.images, batch.labels) for _, batch in zip(range(BATCHES), seen, strict=False)]
    for name, network in asking.items():
        found = estimate_deltas(network, batches, training.seed)
        align(training.fabric, network)
        training.listen("deltas", {"part": name, "least": min(found.values()), "most": max(found.values())})
