"""Teacher cache: the outputs of frozen networks for each training image, computed once per phase instead of once per epoch.

Possible where a network does not learn in the phase, is no view of another one, no head reads it, and images are the same in
every epoch (no augmentation). Members of an exchange are kept all together with what they share, or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkd.data.augment import NO_AUGMENTATIONS
from qkd.distill.plan import EXCHANGE, Phase, Plan, networks_needed
from qkd.distill.taps import SHARED, Outputs, Tap

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

LIMIT = 2**30
"""Bytes that may be kept; for more, networks run in every epoch."""


class TeacherCache:
    """Tensors by tap and image id."""

    def __init__(self, kept: dict[Tap, Tensor], networks: Collection[str]) -> None:
        self.kept = kept
        self.networks = frozenset(networks)  # that need not run any more

    def of(self, ids: Tensor) -> Outputs:
        """What the networks give for these images."""
        return {tap: _channels_last(kept[ids.to(kept.device)]) for tap, kept in self.kept.items()}

    def without(self, active: Sequence[str]) -> list[str]:
        """The networks that still have to run."""
        return [part for part in active if part not in self.networks]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def cacheable_taps(plan: Plan, phase: Phase, *, views: Collection[str] = ()) -> set[Tap]:
    """The taps that terms read of networks which no step of the phase changes; ``views`` of other networks may change."""
    read_by_heads = {part for head in plan.heads for part in head.parts}
    measured = {tap.part for each in plan.statistics for tap in each.reads}
    regularized = {each.part for each in plan.regularizers}
    excluded = {*phase.parts, *read_by_heads, *measured, *regularized, *views}
    exchanged = {*plan.exchange.members, SHARED}
    if exchanged & excluded or EXCHANGE in phase.parts or not plan.exchange.steady:
        excluded |= exchanged
    running = {part for step in phase.steps for part in networks_needed(plan, step)} | {SHARED}
    read = {tap for step in phase.steps for term in step.terms for tap in term.reads}
    return {tap for tap in read if tap.part in running - excluded}


def _networks_of(taps: Iterable[Tap], plan: Plan) -> set[str]:
    """The networks that run to give these taps."""
    parts = {tap.part for tap in taps}
    return parts - {SHARED} | (set(plan.exchange.members) if parts & {SHARED, *plan.exchange.members} else set())


@torch.no_grad()
def build_teacher_cache(training: Training, module: nn.Module, phase: Phase, epochs: int) -> TeacherCache | None:
    """A pass over the training images, in their order; None where it saves nothing or takes more than `LIMIT`."""
    data, taps = training.data, cacheable_taps(training.plan, phase, views=training.ensemble.tied)
    same = (not training.settings.augment or data.augment == "none") and training.augmentations == NO_AUGMENTATIONS
    running = {part for step in phase.steps for part in networks_needed(training.plan, step)}
    parts = _networks_of(taps, training.plan)
    if not taps or not same or epochs < 2 or parts == running:
        return None
    training.ensemble.eval()
    count, kept = len(data.train.labels), dict[Tap, Tensor]()
    for batch in data.batches("train", training.batch, device=training.device):
        outputs = module(batch.images, sorted(parts))
        if not kept:
            if sum(outputs[tap][0].numel() * outputs[tap].element_size() for tap in taps) * count > LIMIT:
                return None
            kept = {tap: outputs[tap].new_empty((count, *outputs[tap].shape[1:])) for tap in taps}
        for tap in taps:
            kept[tap][batch.ids] = outputs[tap]
    return TeacherCache(kept, parts)
