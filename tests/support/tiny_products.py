"""Tiny networks for the tests of export, quantized and calibrated in a tenth of a second."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.export.invariants import constant_value
from qkd.quantizers import Scheme, calibrate, insert

SHAPE = (3, 12, 12)
WIDTH = 6
INTEGER_KERNELS = {
    *("QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm"),
    *("QuantizeLinear", "Clip", "MaxPool", "NhwcMaxPool", "Flatten", "Reshape", "Transpose", "Slice", "Pad", "Split"),
}


def images(count: int = 24, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> np.ndarray:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).numpy()


def with_trained_norms(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with the batch norms of a trained one: gammas of both signs, statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            channels = module.num_features
            module.weight.data = torch.randn(channels, generator=generator)
            module.bias.data = 0.5 * torch.randn(channels, generator=generator)
            module.running_mean = 0.3 * torch.randn(channels, generator=generator)
            module.running_var = 0.2 + torch.rand(channels, generator=generator)
            module.num_batches_tracked.fill_(1)
    return network.eval()


def product(network: nn.Module, scheme: str = "w4a4", **options: Any) -> nn.Module:
    """The network with the batch norms of a trained one, quantized and calibrated, in evaluation mode."""
    quantized = insert(with_trained_norms(network), Scheme.parse(scheme, **{"calibration": "minmax", **options}))
    calibrate(quantized, [torch.from_numpy(images(16, seed=2))])
    return quantized.eval()


def logits(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).numpy()


class Stored(NamedTuple):
    """A layer as it is in a file; ``bias`` counts ``units``."""

    integers: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    units: np.ndarray


def stored(model: onnx.ModelProto, layer: str) -> Stored:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    node = next(node for node in model.graph.node if node.name == layer)
    read = [constant_value(name, constants, makers) for part in node.input[1:] for name in makers[part].input[:2]]
    return Stored(*(part for part in read if part is not None))


def with_another_unit(model: onnx.ModelProto, layer: str, times: float) -> onnx.ModelProto:
    """The model with a bias scale that is not input scale * weight scale."""
    units = stored(model, layer).units * np.float32(times)
    model.graph.initializer.append(numpy_helper.from_array(units, "units"))
    node = next(node for node in model.graph.node if node.name == layer)
    next(maker for maker in model.graph.node if maker.output[0] == node.input[2]).input[1] = "units"
    return model


def block(inputs: int, outputs: int, size: int = 3, **settings: Any) -> nn.Sequential:
    padding = settings.pop("padding", size // 2)
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """A small residual network: strides, max pool, depthwise, a linear bottleneck, an addition, global average pool."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = block(3, WIDTH)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.body = block(WIDTH, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU()
        self.depthwise = block(WIDTH, WIDTH, stride=2, groups=WIDTH)
        self.head = Head(WIDTH, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.pool(self.stem(inputs))
        features = self.relu(self.norm(self.conv(self.body(features))) + features)
        return self.head(self.depthwise(features))


class Head(nn.Module):
    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.gap(features), 1))


class Middle(nn.Module):
    """A stem of two layers, one operation under test that leaves ``width`` channels, and a head."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(3, WIDTH), block(WIDTH, WIDTH)
        self.head = Head(self.width)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.first(inputs)
        return self.head(self.middle(first, self.second(first)))


class AveragePool(Middle):
    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return F.avg_pool2d(second, 3, 2, padding=1)


class AveragePoolWithoutPadding(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.pool(second)


class AdaptivePool(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(6 * WIDTH, 5))

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return second


class IdentityPool(Middle):
    """An adaptive pool to the size that is there already: a quantizer directly behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.third = nn.AdaptiveAvgPool2d(12), block(WIDTH, WIDTH, 1)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.third(self.pool(second))


class Concatenation(Middle):
    width = 2 * WIDTH

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], dim=1)


class NormAlone(Middle):
    """DenseNet's order: batch norm and ReLU in front of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(2 * WIDTH), nn.ReLU()
        self.conv = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat([first, second], 1))))


class MeanAndReshape(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.relu, self.drop, self.head = nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, 5)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        pooled = second.mean((2, 3), keepdim=True)
        return self.drop(self.relu(self.norm(self.fc(pooled.view(pooled.size(0), -1)))))


class ChannelShuffle(Middle):
    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        count, channels, height, width = second.shape
        apart = second.view(count, 2, channels // 2, height, width)
        return torch.transpose(apart, 1, 2).contiguous().view(count, -1, height, width)


class Chunks(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.third = block(WIDTH // 2, WIDTH // 2)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        left, right = second.chunk(2, dim=1)
        return torch.cat((left, self.third(right)), dim=1)


class Convolutions(Middle):
    """Dilated, grouped, uneven kernels, a bias without batch norm, and a max pool before the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = block(WIDTH, 2 * WIDTH, groups=2, dilation=2, padding=2)
        self.uneven = nn.Conv2d(2 * WIDTH, WIDTH, (1, 5), stride=(2, 1), padding=(0, 2))
        self.pool, self.relu = nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU6()

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.relu(self.pool(self.uneven(self.dilated(second))))


MIDDLES = (
    *(AveragePool, AveragePoolWithoutPadding, AdaptivePool, IdentityPool, Concatenation, NormAlone, MeanAndReshape),
    *(ChannelShuffle, Chunks, Convolutions),
)
