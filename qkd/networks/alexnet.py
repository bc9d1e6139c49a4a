"""AlexNet for images of about 32 x 32.

Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks". Departures, all usual
for 32x32 pixels: smaller kernels and strides, BatchNorm behind each convolution instead of response normalisation, and
one linear layer behind a global average pool instead of three behind a flattened map.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from qkd.networks.resnet import init_convolutions
from qkd.options import Count


class AlexNet(nn.Module):
    """(batch, channels, H, W) -> (batch, classes), H and W at least 16.

    ``features.2``, ``.6``, ``.10``, ``.13`` and ``.16`` are the outputs of the five convolutions, each behind its ReLU.
    """

    def __init__(self, *, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(channels, width, kernel=5, stride=2),
            nn.MaxPool2d(2),
            *_layer(width, 3 * width, kernel=5),
            nn.MaxPool2d(2),
            *_layer(3 * width, 6 * width),
            *_layer(6 * width, 4 * width),
            *_layer(4 * width, 4 * width),
            nn.MaxPool2d(2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(4 * width, classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(images))))


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU()


def alexnet(*, classes: int, channels: int = 3, width: Count = 64) -> AlexNet:
    """Five convolutions of W, 3W, 6W, 4W and 4W channels; 2.5 million parameters at the default width."""
    return AlexNet(classes=classes, channels=channels, width=width)
