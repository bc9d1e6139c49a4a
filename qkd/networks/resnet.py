"""Residual networks for small images: three stages of basic blocks, 6n + 2 layers deep, and an 18-layer one of four.

Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2. Departure: the shortcut across a
change of shape is a 1x1 convolution with BatchNorm (their option B) and not padding with zero channels (option A), so
that every path is made of layers that can be quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from qkd.options import Count


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (batch, inputs, H, W) -> (batch, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        return self.relu2(residual + self.shortcut(features))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """(batch, channels, H, W) -> (batch, classes); ``layer1``, ``layer2``, ... are the stages of W, 2W, 4W, ... channels.

    ``stem`` is the width of the first convolution, by default that of the first stage.
    """

    def __init__(
        self, blocks: Sequence[int], *, classes: int, channels: int, width: int, stem: int | None = None
    ) -> None:
        super().__init__()
        inputs = stem or width
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.stages = []
        for number, count in enumerate(blocks):
            outputs = width * 2**number
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], _stage(count, inputs, outputs, stride=1 if number == 0 else 2))
            inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            features = getattr(self, stage)(features)
        return self.fc(self.flatten(self.pool(features)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def init_convolutions(network: nn.Module) -> None:
    """Draw the weights of all convolutions so that variance is kept through ReLUs.

    Source: He et al. 2015, "Delving deep into rectifiers", eq. 14 (the backward case: fan out).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _three_stage_resnet(blocks: int, summary: str) -> Callable[..., ResNet]:
    """A builder of the network with so many blocks in each of its three stages; ``summary`` becomes its docstring."""

    def build(*, classes: int, channels: int = 3, width: Count = 16, stem: Count | None = None) -> ResNet:
        return ResNet([blocks] * 3, classes=classes, channels=channels, width=width, stem=stem)

    build.__doc__ = f"{summary} parameters at the default width."
    return build


RESNETS: dict[str, Callable[..., ResNet]] = {
    f"resnet{6 * blocks + 2}": _three_stage_resnet(blocks, summary)
    for blocks, summary in {
        1: "One block per stage; 0.08 million",
        2: "Two blocks per stage; 0.18 million",
        3: "Three blocks per stage; 0.27 million",
        4: "Four blocks per stage; 0.37 million",
        5: "Five blocks per stage; 0.47 million",
        7: "Seven blocks per stage; 0.66 million",
        9: "Nine blocks per stage; 0.86 million",
        18: "Eighteen blocks per stage; 1.73 million",
    }.items()
}
"""The networks of 6n + 2 layers by name. ``width`` is that of the first stage, ``stem`` that of the first convolution."""


def resnet18(*, classes: int, channels: int = 3, width: Count = 64) -> ResNet:
    """Four stages of two blocks, without the large first convolution and the pool of ImageNet's; 11.2 million parameters."""
    return ResNet([2] * 4, classes=classes, channels=channels, width=width)
