"""Known: what frozen networks say about each training image, computed once per phase instead of once per epoch.

Possible where a network learns nothing in the phase, nobody changes what flows through it, no head listens to it, and
images are the same in every epoch (no augmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkd.data.augment import NO_AUGMENTATIONS
from qkd.distill.plan import EXCHANGE, Phase, Plan, networks_needed
from qkd.distill.taps import Outputs, Tap

if TYPE_CHECKING:
    from qkd.engine.train import Training

LIMIT = 2**30
"""Bytes that may be kept; beyond, networks run as ever."""


class TeacherCache:
    """Tensors by tap and image id."""

    def __init__(self, kept: dict[Tap, Tensor]) -> None:
        self.kept = kept
        self.parts = {tap.part for tap in kept}

    def of(self, ids: Tensor) -> Outputs:
        """What was heard of these images, as if the networks had just run."""
        return {tap: _like_run(kept[ids.to(kept.device)]) for tap, kept in self.kept.items()}

    def without(self, active: Sequence[str]) -> list[str]:
        """The networks that still have to run."""
        return [part for part in active if part not in self.parts]


def _like_run(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def cacheable_taps(plan: Plan, phase: Phase) -> set[Tap]:
    """The taps of a phase that no step can change: read by terms, of networks that are the same all along."""
    learners = {learner.partition(".")[0] for step in phase.steps for learner in step.learners}
    listened = {part for head in plan.heads for part in head.parts}
    surveyed = {tap.part for survey in plan.surveys for tap in survey.reads}
    moving = {*learners, *plan.exchange.members, *listened, *surveyed, EXCHANGE}
    running = {part for step in phase.steps for part in networks_needed(plan, step)}
    anchored = {anchor.part for anchor in plan.anchors}
    read = {tap for step in phase.steps for term in step.terms for tap in term.reads}
    return {tap for tap in read if tap.part in running - moving - anchored}


@torch.no_grad()
def build_teacher_cache(training: Training, module: nn.Module, phase: Phase, epochs: int) -> TeacherCache | None:
    """A pass over the training images, in their order; None where nothing is gained or memory would not hold it."""
    data, taps = training.data, cacheable_taps(training.plan, phase)
    same = (not training.settings.augment or data.augment == "none") and training.changes == NO_AUGMENTATIONS
    everybody = {part for step in phase.steps for part in networks_needed(training.plan, step)}
    parts = {tap.part for tap in taps}
    if not taps or not same or epochs < 2 or parts == everybody:
        return None
    training.parts.eval()
    count, kept = len(data.train.labels), dict[Tap, Tensor]()
    for batch in data.batches("train", training.batch, device=training.device):
        outputs = module(batch.images, sorted(parts))
        if not kept:
            if sum(outputs[tap][0].numel() * outputs[tap].element_size() for tap in taps) * count > LIMIT:
                return None
            kept = {tap: outputs[tap].new_empty((count, *outputs[tap].shape[1:])) for tap in taps}
        for tap in taps:
            kept[tap][batch.ids] = outputs[tap]
    return TeacherCache(kept)
