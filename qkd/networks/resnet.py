"""Residual networks for small images: three stages of basic blocks, 6n + 2 layers deep.

Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2. Departure: the shortcut across a
change of shape is a 1x1 convolution with BatchNorm (their option B) and not padding with zero channels (option A), so
that every path is made of layers that can be quantized.
"""

from __future__ import annotations

from torch import Tensor, nn

from qkd.bounds import Count


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and what skips them; (batch, inputs, H, W) -> (batch, outputs, H / stride, W / stride)."""

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
        change = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        return self.relu2(change + self.shortcut(features))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """(batch, channels, H, W) -> (batch, classes); ``layer1`` to ``layer3`` are the stages, W, 2W and 4W wide."""

    def __init__(self, blocks: int, *, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)
        start(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(self.flatten(self.pool(features)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def start(network: nn.Module) -> None:
    """Draw the weights of all convolutions so that variance is kept through ReLUs.

    Source: He et al. 2015, "Delving deep into rectifiers", eq. 14 (the backward case: fan out).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet8(*, classes: int, channels: int = 3, width: Count = 16) -> ResNet:
    """One block per stage; 0.08 million parameters at the default width."""
    return ResNet(1, classes=classes, channels=channels, width=width)


def resnet14(*, classes: int, channels: int = 3, width: Count = 16) -> ResNet:
    """Two blocks per stage; 0.18 million parameters at the default width."""
    return ResNet(2, classes=classes, channels=channels, width=width)


def resnet20(*, classes: int, channels: int = 3, width: Count = 16) -> ResNet:
    """Three blocks per stage; 0.27 million parameters at the default width."""
    return ResNet(3, classes=classes, channels=channels, width=width)


def resnet32(*, classes: int, channels: int = 3, width: Count = 16) -> ResNet:
    """Five blocks per stage; 0.47 million parameters at the default width."""
    return ResNet(5, classes=classes, channels=channels, width=width)


def resnet56(*, classes: int, channels: int = 3, width: Count = 16) -> ResNet:
    """Nine blocks per stage; 0.86 million parameters at the default width."""
    return ResNet(9, classes=classes, channels=channels, width=width)
