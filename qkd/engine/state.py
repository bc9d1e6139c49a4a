"""State: how far training is, as a checkpoint that can be saved and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkd.assembly.ensemble import Ensemble
from qkd.engine.distributed import all_gather
from qkd.errors import RunError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.engine.ema import Ema


@dataclass
class TrainingState:
    """How far training is: what a checkpoint holds beside tensors. ``facts``: accuracies from before training, in percent."""

    phase: int = 0
    epoch: int = 0  # epochs done in this phase
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float = -1.0
    facts: dict[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "facts": dict(self.facts)}


@dataclass
class EpochProgress:
    """The epoch in progress: batches done, the losses of each term so far, and the gradient shares."""

    batches: int = 0
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def state(self, fabric: Fabric) -> dict[str, Any]:
        """For a checkpoint. Losses are (batches,), of several ranks (ranks, batches). To be called on every rank."""
        seen = {name: torch.stack(each) for name, each in self.losses.items() if each}
        losses = {name: torch.stack(all_gather(fabric, each)).squeeze(0).cpu() for name, each in seen.items()}
        return {"batches": self.batches, "losses": losses, "values": dict(self.shares)}

    @classmethod
    def of(cls, state: Mapping[str, Any], fabric: Fabric) -> EpochProgress:
        """From a checkpoint: the losses of this rank; where there was another number of ranks, their mean."""
        losses = {name: _of_this_rank(seen, fabric).to(fabric.device) for name, seen in state["losses"].items()}
        return cls(state["batches"], {name: list(own.unbind()) for name, own in losses.items()}, dict(state["values"]))


def _of_this_rank(seen: Tensor, fabric: Fabric) -> Tensor:
    if seen.dim() == 1:
        return seen
    return seen[fabric.global_rank] if len(seen) == fabric.world_size else seen.mean(0)


def snapshot(
    fabric: Fabric,
    ensemble: Ensemble,
    state: TrainingState,
    *,
    optimizers: Sequence[Any] = (),
    running: EpochProgress | None = None,
    average: Ema | None = None,
) -> dict[str, Any]:
    """Everything that the rest of a run depends on, of all ranks. To be called on every rank."""
    cuda = (
        torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
    )
    return {
        "parts": ensemble.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "cursor": state.as_dict(),
        "running": running.state(fabric) if running else None,
        "average": average.state() if average else None,
        "precision": fabric.strategy.precision.state_dict(),  # the loss scale of fp16
        "random": all_gather(fabric, torch.get_rng_state()),
        "random_cuda": all_gather(fabric, cuda),
    }


def restore(
    fabric: Fabric, saved: Mapping[str, Any], optimizers: Sequence[Any], average: Ema | None
) -> EpochProgress | None:
    """Load everything but the ensemble and the training state. -> the epoch that was in progress, if one was"""
    states = saved["optimizers"]
    if states and len(states) != len(optimizers):
        raise RunError(
            "the checkpoint belongs to another plan: it has another number of optimizer steps per batch",
            key="run.checkpoint-of-another-plan",
        )
    for optimizer, content in zip(optimizers, states, strict=False):
        parts = [group["part"] for group in optimizer.param_groups]
        optimizer.load_state_dict(content)
        for part, group in zip(parts, optimizer.param_groups, strict=True):
            group["part"] = part  # checkpoints of earlier versions lack it
    if average is not None and saved["average"] is not None:
        average.load(saved["average"])
    if saved["precision"]:  # empty where the run began in another precision
        fabric.strategy.precision.load_state_dict(saved["precision"])
    if len(saved["random"]) == fabric.world_size:  # with other ranks the run goes on, but not to the same bits
        torch.set_rng_state(saved["random"][fabric.global_rank])
        cuda = saved["random_cuda"][fabric.global_rank]
        if fabric.device.type == "cuda" and len(cuda):
            torch.cuda.set_rng_state(cuda, fabric.device)
    return EpochProgress.of(saved["running"], fabric) if saved["running"] else None


def shuffle_seed(*numbers: int) -> int:
    """One seed from several numbers. Written out (CPython's hash of a tuple of small integers), so that it never changes."""
    mask, state = 2**64 - 1, 2870177450012600261
    for number in numbers:
        state = (state + number * 14029467366897019727) & mask
        state = ((state << 31) | (state >> 33)) & mask
        state = (state * 11400714785074694791) & mask
    return (state + (len(numbers) ^ (2870177450012600261 ^ 3527539))) % 2**31
