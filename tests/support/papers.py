"""The recipes after papers."""

from __future__ import annotations

from qkd import recipe as recipes

PAPERS = sorted(name for name in recipes.bundled() if name.startswith(("cifar100_", "imagenet_", "cifar10_resnet8_")))
