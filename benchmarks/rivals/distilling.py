"""What the timings of distillation share: networks, batches, and the loop one would write by hand.

A float ResNet-20 learns from a frozen one of twice its width: labels, softened logits, attention maps at three layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from task import CLASSES, noise, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.networks import NETWORKS

TAPS = ("layer1", "layer2", "layer3")
TEMPERATURE, SOFT, ATTENTION, CLIP, RATE = 4.0, 0.9, 1000.0, 5.0, 1e-3
STEPS = 4
"""Batches of one round."""
Pair = tuple[Tensor, Tensor]


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    student, teacher = NETWORKS["resnet20"](classes=CLASSES), NETWORKS["resnet20"](classes=CLASSES, width=32)
    return student.to(memory_format=torch.channels_last).train(), teacher.to(memory_format=torch.channels_last).eval()


def batches(size: int) -> list[Pair]:
    return [(noise(size), torch.arange(size) % CLASSES) for _ in range(STEPS)]


def attention(features: Tensor) -> Tensor:
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def by_hand(student: nn.Module, teacher: nn.Module, given: Callable[[], Sequence[Pair]]) -> Callable[[], None]:
    """One pass over what ``given`` gives, as one would write it for this method alone: hooks, losses, SGD, clipping."""
    seen: dict[tuple[nn.Module, str], Tensor] = {}
    for network in (student, teacher):
        for name in TAPS:

            def keep(
                layer: nn.Module, inputs: object, output: Tensor, at: tuple[nn.Module, str] = (network, name)
            ) -> None:
                seen[at] = output

            network.get_submodule(name).register_forward_hook(keep)
    optimizer = sgd(student, RATE)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            soft = F.softmax(teacher(images) / TEMPERATURE, 1)
        scores = student(images)
        told = F.kl_div(F.log_softmax(scores / TEMPERATURE, 1), soft, reduction="batchmean") * TEMPERATURE**2
        loss = (1 - SOFT) * F.cross_entropy(scores, labels) + SOFT * told
        for name in TAPS:
            difference = attention(seen[student, name]) - attention(seen[teacher, name])
            loss = loss + ATTENTION * difference.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()

    def once() -> None:
        for images, labels in given():
            step(images, labels)

    return once
