"""Float networks by name. `build.build` builds one, also of torchvision, of timm or of a user's file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qkd.networks.alexnet import alexnet
from qkd.networks.resnet import RESNETS, resnet18

NETWORKS: dict[str, Callable[..., nn.Module]] = {**RESNETS, "resnet18": resnet18, "alexnet": alexnet}
