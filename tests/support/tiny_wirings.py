"""Small networks of every wiring that insertion supports, and how the tests quantize and read them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qkd.quantizers import FAMILIES, Scheme, calibrate, insert
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.injectors import ActivationQuantizer, WeightQuantizer

QUANTIZERS = (qnn.QuantReLU, qnn.QuantIdentity)
LAYERS = (qnn.QuantConv2d, qnn.QuantLinear)


class Block(nn.Module):
    """A residual block whose one ReLU module is called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.layer1, self.layer2 = Block(6, 6, 1), Block(6, 8, 2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(self.stem(x)))), 1))


class Functional(nn.Module):
    """Everything written as a function or a method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.e, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        y = torch.add(torch.relu(self.b(x)), x)
        z = self.c(y).add(y).relu()
        x = F.relu6(self.d(torch.cat([y, z], 1)), inplace=True)
        x = F.dropout(F.avg_pool2d(x, 2), 0.1, self.training)
        x = x + self.e(x)
        return self.fc(x.mean((2, 3)).view(x.size(0), -1))


class Bottleneck(nn.Module):
    """MobileNetV2's inverted residuals: depthwise, ReLU6, linear outputs that are added or feed a layer directly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = self._part(3, 4), self._part(4, 4), self._part(4, 6)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 5))

    @staticmethod
    def _part(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(F.adaptive_avg_pool2d(self.second(x), 1).flatten(1))


class PreActivation(nn.Module):
    """DenseNet's order: batch norm and ReLU before each layer, concatenations between; and an unknown function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.conv1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.norm2, self.conv2, self.norm3 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.swish = nn.ReLU(), nn.SiLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(self.relu(self.norm1(x)))
        x = self.conv2(self.relu(self.norm2(torch.cat([x, y], 1))))
        return self.fc(self.swish(self.norm3(x)).mean(dim=[2, 3]))


NETWORKS: list[Callable[[], nn.Module]] = [Residual, Functional, Bottleneck, PreActivation]


def weight_layer(family: str, bits: int, per_channel: bool = True) -> nn.Module:
    layer = qnn.QuantConv2d(
        3,
        5,
        3,
        weight_quant=WeightQuantizer,
        weight_family=FAMILIES[family],
        weight_bit_width=bits,
        weight_per_channel=per_channel,
    )
    layer.weight_quant.tensor_quant.fit(layer.weight.flatten(1))
    return layer


def activation_layer(family: str, bits: int, signed: bool) -> nn.Module:
    settings = {"act_quant": ActivationQuantizer, "family": FAMILIES[family], "signed": signed, "bit_width": bits}
    layer = (qnn.QuantIdentity if signed else qnn.QuantReLU)(**settings)
    layer.act_quant.core.fit(torch.randn(1, 1000) if signed else torch.randn(1, 1000).relu())
    return layer


def images(count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, 16, mode="bilinear") + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)


def with_statistics(build: Callable[[], nn.Module]) -> nn.Module:
    """A random network whose batch norms have statistics and affine parts of their own."""
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = None
    with torch.no_grad():
        network(images())
    return network.eval()


def quantized(build: Callable[[], nn.Module], text: str = "w4a4", **options: object) -> fx.GraphModule:
    network = insert(with_statistics(build), Scheme.parse(text, **options))
    calibrate(network, [images()])
    return network


def sources(module: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes that made the operands of a node, found behind operators that keep a grid."""
    found = []
    for source in node.all_input_nodes:
        keeps = isinstance(part(module, source), (nn.Flatten, nn.Dropout, nn.MaxPool2d, nn.Identity, nn.Sequential))
        name = getattr(source.target, "__name__", source.target)
        if keeps or name in ("flatten", "view", "max_pool2d") or "by_mode" in str(source.target):
            found += sources(module, source)
        elif name not in ("size",):
            found.append(source)
    return found


def part(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None
