"""The sign of a tensor is known, never guessed: for every spelling what may be below zero, and no value that contradicts it."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.networks.tracing import trace
from qkd.quantizers.node_kinds import signs
from qkd.quantizers.signs import Sign

NONE, MINUS, PLUS, BOTH = Sign.ZERO, Sign.NEGATIVE, Sign.POSITIVE, Sign.BOTH


class Calls(nn.Module):
    """One operation on ``x`` of both signs and ``p`` that is never negative, with constants of all kinds at hand."""

    def __init__(self, operation: Callable[[Calls, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation
        self.learned = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("plus", torch.full((4, 1, 1), 2.0))
        self.register_buffer("minus", torch.full((4, 1, 1), -2.0))
        self.layers = nn.ModuleDict(
            {
                "up": nn.Hardtanh(0.5, 2),
                "tanh": nn.Hardtanh(),
                "below": nn.Hardtanh(-2, -1),
                "leaky": nn.LeakyReLU(0.1),
                "folding": nn.LeakyReLU(-0.1),
                "prelu": nn.PReLU(),
                "zeros": nn.ConstantPad2d(1, 0.0),
                "minus": nn.ConstantPad2d(1, -1.0),
                "mirror": nn.ReflectionPad2d(1),
                "pool": nn.AvgPool2d(2),
                "max": nn.MaxPool2d(3, 1, 1),
                "drop": nn.Dropout(0.5),
                "conv": nn.Conv2d(4, 4, 1),
                "norm": nn.BatchNorm2d(4),
                "nearest": nn.Upsample(scale_factor=2),
                "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
                "sigmoid": nn.Sigmoid(),
                "softplus": nn.Softplus(),
                "elu": nn.ELU(),
                "gelu": nn.GELU(),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.operation(self, images, F.relu(images + 0.1))


Operation = Callable[[Calls, Tensor, Tensor], Tensor]
RIGHT: dict[str, tuple[Sign, Operation]] = {
    "p * -1": (MINUS, lambda n, x, p: p * -1),
    "-1 * p": (MINUS, lambda n, x, p: -1 * p),
    "p * 2": (PLUS, lambda n, x, p: p * 2),
    "p * 0": (NONE, lambda n, x, p: p * 0),
    "x * 2": (BOTH, lambda n, x, p: x * 2),
    "torch.mul(p, -1)": (MINUS, lambda n, x, p: torch.mul(p, -1)),
    "torch.mul(p, other=-1.0)": (MINUS, lambda n, x, p: torch.mul(p, other=-1.0)),
    "torch.mul(input=p, other=p)": (PLUS, lambda n, x, p: torch.mul(input=p, other=p)),
    "torch.multiply(p, -1)": (MINUS, lambda n, x, p: torch.multiply(p, -1)),
    "p.mul(-1)": (MINUS, lambda n, x, p: p.mul(-1)),
    "p.clone().mul_(-1)": (MINUS, lambda n, x, p: p.clone().mul_(-1)),
    "imul": (MINUS, lambda n, x, p: operator.imul(p.clone(), -1)),
    "p * -1 * -1": (PLUS, lambda n, x, p: p * -1 * -1),
    "(-p) * (-p)": (PLUS, lambda n, x, p: torch.mul(-p, -1 * p)),
    "p * x": (BOTH, lambda n, x, p: p * x),
    "x * x": (PLUS, lambda n, x, p: x * x),
    "x * -x": (BOTH, lambda n, x, p: x * -x),
    "buffer": (BOTH, lambda n, x, p: p * n.plus),  # a checkpoint may hold other values
    "buffer of minus": (BOTH, lambda n, x, p: n.minus * p),
    "p ** buffer": (PLUS, lambda n, x, p: p**n.plus),
    "parameter": (BOTH, lambda n, x, p: p * n.learned),
    "|parameter|": (PLUS, lambda n, x, p: p * n.learned.abs()),
    "exp(parameter)": (PLUS, lambda n, x, p: torch.exp(n.learned) * p),
    "softplus(parameter)": (PLUS, lambda n, x, p: F.softplus(n.learned) * p),
    "p * size": (PLUS, lambda n, x, p: p * x.size(1)),
    "p * -shape": (MINUS, lambda n, x, p: p * -x.shape[1]),
    "p / size": (PLUS, lambda n, x, p: p / (x.shape[2] * x.shape[3])),
    "p / -2": (MINUS, lambda n, x, p: p / -2),
    "p.div(-2)": (MINUS, lambda n, x, p: p.div(-2)),
    "torch.div(p, -2)": (MINUS, lambda n, x, p: torch.div(p, -2)),
    "p / 6": (PLUS, lambda n, x, p: p / 6),
    "p // -2": (MINUS, lambda n, x, p: p // -2),
    "-1 / (p + 1)": (MINUS, lambda n, x, p: -1 / (p + 1)),
    "-p": (MINUS, lambda n, x, p: -p),
    "torch.neg(p)": (MINUS, lambda n, x, p: torch.neg(p)),
    "p.neg()": (MINUS, lambda n, x, p: p.neg()),
    "-(p * -1)": (PLUS, lambda n, x, p: -(p * -1)),
    "p - 1": (BOTH, lambda n, x, p: p - 1),
    "p - -1": (PLUS, lambda n, x, p: p - -1),
    "1 - p": (BOTH, lambda n, x, p: 1 - p),
    "0 - p": (MINUS, lambda n, x, p: 0 - p),
    "rsub": (BOTH, lambda n, x, p: torch.rsub(p, 1)),
    "rsub of minus": (PLUS, lambda n, x, p: torch.rsub(-p, 1)),
    "p - q": (BOTH, lambda n, x, p: p - F.relu(x)),
    "p - (-q)": (PLUS, lambda n, x, p: p - (-F.relu(x))),
    "torch.sub(p, q, alpha=-1)": (PLUS, lambda n, x, p: torch.sub(p, F.relu(x), alpha=-1)),
    "p.sub(1)": (BOTH, lambda n, x, p: p.sub(1)),
    "p + q": (PLUS, lambda n, x, p: p + F.relu(x)),
    "p + x": (BOTH, lambda n, x, p: p + x),
    "p + 1": (PLUS, lambda n, x, p: p + 1),
    "p + -1": (BOTH, lambda n, x, p: p + -1),
    "-1 + p": (BOTH, lambda n, x, p: -1 + p),
    "p + buffer": (BOTH, lambda n, x, p: p + n.plus),
    "torch.add(p, q, alpha=-1)": (BOTH, lambda n, x, p: torch.add(p, F.relu(x), alpha=-1)),
    "torch.add(p, q, alpha=2)": (PLUS, lambda n, x, p: torch.add(p, F.relu(x), alpha=2)),
    "clamp(-1, 1)": (BOTH, lambda n, x, p: torch.clamp(x, -1, 1)),
    "clamp(0, 1)": (PLUS, lambda n, x, p: x.clamp(0, 1)),
    "clamp(min=0)": (PLUS, lambda n, x, p: x.clamp(min=0)),
    "clamp(max=0)": (MINUS, lambda n, x, p: x.clamp(max=0)),
    "clamp(max=1)": (BOTH, lambda n, x, p: x.clamp(max=1)),
    "p.clamp(max=1)": (PLUS, lambda n, x, p: p.clamp(max=1)),
    "p.clamp(-2, -1)": (MINUS, lambda n, x, p: p.clamp(-2, -1)),
    "clamp_min(0)": (PLUS, lambda n, x, p: x.clamp_min(0)),
    "clamp_min(min=-1)": (BOTH, lambda n, x, p: torch.clamp_min(x, min=-1)),
    "hardtanh": (BOTH, lambda n, x, p: F.hardtanh(x)),
    "hardtanh of p": (PLUS, lambda n, x, p: F.hardtanh(p)),
    "hardtanh(0, 6)": (PLUS, lambda n, x, p: F.hardtanh(x, 0.0, 6.0)),
    "Hardtanh()": (BOTH, lambda n, x, p: n.layers["tanh"](x)),
    "Hardtanh(0.5, 2)": (PLUS, lambda n, x, p: n.layers["up"](x)),
    "Hardtanh(-2, -1)": (MINUS, lambda n, x, p: n.layers["below"](p)),
    "relu6(x + 3) / 6": (PLUS, lambda n, x, p: F.relu6(x + 3) / 6),
    "abs": (PLUS, lambda n, x, p: x.abs()),
    "builtin abs": (PLUS, lambda n, x, p: operator.abs(x)),
    "square": (PLUS, lambda n, x, p: torch.square(x)),
    "x ** 2": (PLUS, lambda n, x, p: x**2),
    "x ** 3": (BOTH, lambda n, x, p: x**3),
    "(-p) ** 3": (MINUS, lambda n, x, p: (-p) ** 3),
    "p ** 0.5": (PLUS, lambda n, x, p: p**0.5),
    "x.pow(2)": (PLUS, lambda n, x, p: x.pow(2)),
    "exp": (PLUS, lambda n, x, p: torch.exp(x)),
    "sqrt": (PLUS, lambda n, x, p: torch.sqrt(p)),
    "sigmoid": (PLUS, lambda n, x, p: torch.sigmoid(x)),
    "Sigmoid": (PLUS, lambda n, x, p: n.layers["sigmoid"](x)),
    "x * sigmoid(x)": (BOTH, lambda n, x, p: x * torch.sigmoid(x)),
    "p * sigmoid(x)": (PLUS, lambda n, x, p: p * torch.sigmoid(x)),
    "softmax": (PLUS, lambda n, x, p: F.softmax(x, 1)),
    "log_softmax": (MINUS, lambda n, x, p: F.log_softmax(x, 1)),
    "Softplus": (PLUS, lambda n, x, p: n.layers["softplus"](x)),
    "ELU": (BOTH, lambda n, x, p: n.layers["elu"](x)),
    "ELU of p": (PLUS, lambda n, x, p: n.layers["elu"](p)),
    "GELU": (BOTH, lambda n, x, p: n.layers["gelu"](x)),
    "GELU of p": (PLUS, lambda n, x, p: n.layers["gelu"](p)),
    "LeakyReLU": (BOTH, lambda n, x, p: n.layers["leaky"](x)),
    "LeakyReLU of p": (PLUS, lambda n, x, p: n.layers["leaky"](p)),
    "LeakyReLU(-0.1)": (PLUS, lambda n, x, p: n.layers["folding"](x)),
    "leaky_relu(-p, -1)": (PLUS, lambda n, x, p: F.leaky_relu(-p, -1.0)),
    "PReLU": (BOTH, lambda n, x, p: n.layers["prelu"](x)),
    "PReLU of p": (PLUS, lambda n, x, p: n.layers["prelu"](p)),
    "maximum(x, p)": (PLUS, lambda n, x, p: torch.maximum(x, p)),
    "maximum(x, -p)": (BOTH, lambda n, x, p: torch.maximum(x, -p)),
    "minimum(x, p)": (BOTH, lambda n, x, p: torch.minimum(x, p)),
    "minimum(p, q)": (PLUS, lambda n, x, p: torch.minimum(p, torch.sigmoid(x))),
    "minimum(x, -p)": (MINUS, lambda n, x, p: torch.minimum(x, -p)),
    "max(p, -p)": (PLUS, lambda n, x, p: torch.max(p, -p)),
    "p.max(1)[0]": (PLUS, lambda n, x, p: p.max(1)[0]),
    "x.max(1)[0]": (BOTH, lambda n, x, p: x.max(1)[0]),
    "amax": (PLUS, lambda n, x, p: p.amax((2, 3))),
    "sum": (MINUS, lambda n, x, p: (-p).sum(1)),
    "mean": (PLUS, lambda n, x, p: p.mean((2, 3))),
    "var": (PLUS, lambda n, x, p: x.var(1)),
    "p @ p": (PLUS, lambda n, x, p: p @ p.transpose(2, 3)),
    "p @ x": (BOTH, lambda n, x, p: torch.matmul(p, x.transpose(2, 3))),
    "where": (BOTH, lambda n, x, p: torch.where(x > 0, p, -p)),
    "where plus": (PLUS, lambda n, x, p: torch.where(x > 0, p, 1.0)),
    "masked_fill": (BOTH, lambda n, x, p: p.masked_fill(x > 0, -1.0)),
    "masked_fill zero": (PLUS, lambda n, x, p: p.masked_fill(x > 0, 0.0)),
    "cat": (PLUS, lambda n, x, p: torch.cat([p, torch.sigmoid(x)], 1)),
    "cat of both": (BOTH, lambda n, x, p: torch.cat([p, -p], 1)),
    "cat(tensors=)": (PLUS, lambda n, x, p: torch.cat(tensors=(p, p), dim=1)),
    "stack": (PLUS, lambda n, x, p: torch.stack([p, p], 1)),
    "conv": (BOTH, lambda n, x, p: n.layers["conv"](p)),
    "norm": (BOTH, lambda n, x, p: n.layers["norm"](p)),
    "avg pool": (PLUS, lambda n, x, p: n.layers["pool"](p)),
    "max pool": (PLUS, lambda n, x, p: n.layers["max"](p)),
    "max pool of -p": (MINUS, lambda n, x, p: F.max_pool2d(-p, 2)),
    "dropout": (PLUS, lambda n, x, p: n.layers["drop"](p)),
    "functional dropout": (PLUS, lambda n, x, p: F.dropout(p, 0.5, n.training)),
    "slice": (PLUS, lambda n, x, p: p[:, 1:3]),
    "slice of both": (BOTH, lambda n, x, p: x[:, 1:3]),
    "ellipsis": (PLUS, lambda n, x, p: p[..., ::2]),
    "index": (PLUS, lambda n, x, p: p[:, 0]),
    "chunk": (PLUS, lambda n, x, p: p.chunk(2, 1)[1]),
    "chunks": (PLUS, lambda n, x, p: p.chunk(4, 1)[:2][1]),
    "split": (MINUS, lambda n, x, p: torch.split(-p, 2, 1)[0]),
    "unbind": (PLUS, lambda n, x, p: p.unbind(1)[0]),
    "pad": (PLUS, lambda n, x, p: F.pad(p, (0, 1, 0, 1))),
    "pad with minus": (BOTH, lambda n, x, p: F.pad(p, (0, 1), value=-1.0)),
    "pad with plus": (PLUS, lambda n, x, p: F.pad(p, (0, 1), "constant", 1.0)),
    "pad by reflection": (PLUS, lambda n, x, p: F.pad(p, (1, 1, 1, 1), mode="reflect")),
    "ConstantPad2d(1, 0)": (PLUS, lambda n, x, p: n.layers["zeros"](p)),
    "ConstantPad2d(1, -1)": (BOTH, lambda n, x, p: n.layers["minus"](p)),
    "ReflectionPad2d": (PLUS, lambda n, x, p: n.layers["mirror"](p)),
    "clone": (PLUS, lambda n, x, p: p.clone()),
    "torch.clone": (PLUS, lambda n, x, p: torch.clone(p)),
    "detach": (PLUS, lambda n, x, p: p.detach()),
    "expand": (PLUS, lambda n, x, p: p[:, :1].expand(-1, 4, -1, -1)),
    "expand_as": (PLUS, lambda n, x, p: p[:, :1].expand_as(x)),
    "permute": (PLUS, lambda n, x, p: p.permute(0, 2, 3, 1)),
    "transpose": (PLUS, lambda n, x, p: torch.transpose(p, 1, 2)),
    "reshape": (PLUS, lambda n, x, p: p.reshape(p.shape[0], -1)),
    "view": (PLUS, lambda n, x, p: p.view(p.size(0), -1)),
    "flatten": (PLUS, lambda n, x, p: p.flatten(1)),
    "squeeze": (PLUS, lambda n, x, p: p.unsqueeze(1).squeeze(1)),
    "contiguous": (PLUS, lambda n, x, p: p.contiguous()),
    "float": (PLUS, lambda n, x, p: p.float()),
    "to": (PLUS, lambda n, x, p: p.to(torch.float32)),
    "to(other)": (PLUS, lambda n, x, p: p.to(x.dtype)),
    "type_as": (PLUS, lambda n, x, p: p.type_as(x)),
    "flip": (PLUS, lambda n, x, p: torch.flip(p, [2])),
    "nearest": (PLUS, lambda n, x, p: n.layers["nearest"](p)),
    "interpolate": (PLUS, lambda n, x, p: F.interpolate(p, scale_factor=2, mode="bilinear")),
    "bicubic": (BOTH, lambda n, x, p: n.layers["bicubic"](p)),
    "unheard of": (BOTH, lambda n, x, p: torch.special.i0e(p)),
}


@pytest.mark.parametrize("spelling", RIGHT)
def test_the_sign_of_a_result_is_known(spelling: str) -> None:
    right, operation = RIGHT[spelling]
    network = Calls(operation)
    graph = trace(network)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    assert signs(graph)[output.args[0]] is right
    values = graph.eval()(torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert bool((values >= 0).all()) or Sign.NEGATIVE in right
    assert bool((values <= 0).all()) or Sign.POSITIVE in right


class Mirrored(nn.Sigmoid):
    """A layer derived from one that gives no negative values, and that does."""

    is_leaf = True

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) - 1


class Centred(nn.AvgPool2d):
    """A layer derived from a pool that takes a mean away."""

    is_leaf = True

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) - inputs.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("layer", [Mirrored(), Centred(2)], ids=lambda layer: type(layer).__name__)
def test_nothing_is_known_of_a_class_derived_from_a_known_one(layer: nn.Module) -> None:
    graph = trace(nn.Sequential(nn.ReLU(), layer))
    assert list(signs(graph).values())[-2] is BOTH
