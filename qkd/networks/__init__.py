"""Float networks by name. `build.build` makes one, also from torchvision, timm or a file of your own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qkd.networks.alexnet import alexnet
from qkd.networks.resnet import (
    resnet8,
    resnet14,
    resnet18,
    resnet20,
    resnet26,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet26": resnet26,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet18": resnet18,
    "alexnet": alexnet,
}
