"""Layer norms, layer scales and linear layers on channels-last tensors: what ConvNeXt is made of, exported and proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qkd.assembly.export_preview import stays_float
from qkd.errors import ExportError
from qkd.export import emit, emit_float, emulate, predict, require, save, verify
from qkd.export.emulator import Program
from qkd.quantizers import Scheme, calibrate, insert
from qkd.quantizers.brevitas_imports import qnn
from tests.support.refusals import Refused
from tests.support.tiny_wirings import images


class ChannelNorm(nn.LayerNorm):
    is_leaf = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """torchvision's: channels last between two permutes, and a scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width, 1e-6)
        self.up, self.gelu, self.down = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.linspace(-1, 1, width).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.permute(self.depthwise(x), [0, 2, 3, 1])
        y = self.down(self.gelu(self.up(self.norm(y))))
        return self.scale * y.transpose(1, 3).transpose(2, 3) + x


class ConvBlock(nn.Module):
    """timm's: convolutions, and a scale that is reshaped where it is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), ChannelNorm(width)
        self.up, self.gelu, self.down = nn.Conv2d(width, 8, 1), nn.GELU(), nn.Conv2d(8, width, 1)
        self.gamma, self.drop = nn.Parameter(torch.linspace(2, -1, width)), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.gelu(self.up(self.norm(self.depthwise(x)))))
        return self.drop(y.mul(self.gamma.reshape(1, -1, 1, 1))) + x


class Next(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), ChannelNorm(width))
        self.blocks = nn.Sequential(Block(width), ConvBlock(width))
        self.head, self.last = ChannelNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)).flatten(1))


class Alone(nn.Module):
    """One norm over channels between a convolution and the logits."""

    def __init__(self, width: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, width, 16), norm or nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x).flatten(1)))


NORMS = ("stem.1.layer_norm", "blocks.0.norm", "blocks.1.norm.layer_norm_1", "head.layer_norm_2")
CURVES = ("blocks.0.gelu", "blocks.1.gelu")


def quantized(network: nn.Module, text: str = "w4a4") -> fx.GraphModule:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.startswith(("stem.1", "head")):
                parameter.add_(torch.randn_like(parameter) / 3)
    module = insert(network, Scheme.parse(text))
    calibrate(module, [images()])
    return module


@pytest.mark.parametrize("text", ["w4a4", "w2a8", "w8a2"])
def test_all_weights_run_in_integers_and_the_emulator_gives_every_bit(text: str, tmp_path: Path) -> None:
    module = quantized(Next(), text)
    layers = [name for name, part in module.named_modules() if isinstance(part, (qnn.QuantConv2d, qnn.QuantLinear))]
    assert len(layers) == 8
    preview = stays_float(module, (3, 16, 16))
    assert {name for name, _ in preview} == {*NORMS, *CURVES}
    module.train()(images()).square().mean().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in module.parameters())
    emitted = emit(module.eval(), (3, 16, 16))
    assert list(emitted.float_layers) == preview
    path = save(emitted.model, tmp_path / "next.onnx")
    with torch.no_grad():
        expected = module(images()).numpy()
    verdict = verify(path, images().numpy(), reference_logits=expected)
    require(verdict)
    assert verdict.equal_fraction == 1
    assert verdict.same_in_batches
    assert set(layers) <= set(verdict.integer_layers)
    assert set(verdict.float_layers) <= {*NORMS, *CURVES}
    found = predict(path, images().numpy())
    assert np.abs(found - expected).max() < 0.15 * expected.std()


def test_scales_of_channels_go_into_the_weights() -> None:
    network = Next()
    emitted = emit(quantized(network).eval(), (3, 16, 16))
    made = {node.name for node in emitted.model.graph.node}
    assert not [name for name in made if name.endswith((".mul", ".mul_1"))]
    assert "blocks.0.down" in made
    integers = {tensor.name: tensor for tensor in emitted.model.graph.initializer}
    assert "blocks.0.scale" not in integers
    assert "blocks.1.gamma" not in integers


def test_a_scale_that_something_else_reads_too_stays_a_product() -> None:
    class Twice(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.depthwise(x)
            return y * self.scale + y

    network = Next()
    network.blocks = nn.Sequential(Twice(6))
    module = quantized(network)
    emitted = emit(module.eval(), (3, 16, 16))
    assert ("blocks.0.mul", "one of its operands is not quantized") in emitted.float_layers
    assert np.array_equal(predict(emitted.model, images().numpy()), emulate(emitted.model, images().numpy()))


def test_the_norm_of_codes_is_that_of_their_values() -> None:
    module = quantized(Alone(12), "w8a8")
    emitted = emit(module.eval(), (3, 16, 16))
    assert "LayerNormalization" not in {node.op_type for node in emitted.model.graph.node}
    program = Program(emitted.model)
    program.output = "norm"
    kept: list[Tensor] = []
    module.get_submodule("norm").register_forward_hook(lambda norm, given, result: kept.append(result))
    with torch.no_grad():
        module(images())
    # a code apart in the convolution, where a value fell on a tie, is a few hundredths here
    apart = np.abs(program.run(images().numpy()) - kept[0].numpy())
    assert np.median(apart) < 1e-6
    assert apart.max() < 0.1


def test_a_row_without_any_spread_is_finite() -> None:
    network = Alone(8)
    with torch.no_grad():
        network.conv.weight.zero_()
        network.conv.bias.fill_(0.7)
    emitted = emit(quantized(network).eval(), (3, 16, 16))
    found, expected = predict(emitted.model, images().numpy()), emulate(emitted.model, images().numpy())
    assert np.isfinite(found).all()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("width", "kind"), [(1024, "ReduceSum"), (1040, "LayerNormalization")])
def test_codes_whose_sums_float32_cannot_hold_take_onnxruntimes_own_operator(width: int, kind: str) -> None:
    emitted = emit(quantized(Alone(width), "w2a8").eval(), (3, 16, 16))
    kinds = {node.op_type for node in emitted.model.graph.node}
    assert (kind in kinds) and not {"ReduceSum", "LayerNormalization"} <= kinds
    x = images(4).numpy()
    assert np.array_equal(predict(emitted.model, x), emulate(emitted.model, x))


def test_a_norm_without_weights_and_one_of_floats() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Softmax(1), nn.LayerNorm(8, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    for norm in (nn.LayerNorm(8, elementwise_affine=False), Behind()):
        emitted = emit(quantized(Alone(8, norm)).eval(), (3, 16, 16))
        assert np.array_equal(predict(emitted.model, images().numpy()), emulate(emitted.model, images().numpy()))


def test_packed_files_and_float_files_have_it_too() -> None:
    module = quantized(Next())
    packed = emit(module.eval(), (3, 16, 16), storage="packed")
    x = images().numpy()
    assert np.array_equal(predict(packed.model, x), predict(emit(module, (3, 16, 16)).model, x))
    network = Next().eval()
    plain = insert(network, Scheme(4, 4))
    found = predict(emit_float(plain, (3, 16, 16)), x)
    with torch.no_grad():
        assert np.abs(found - network(images()).numpy()).max() < 1e-4


def test_a_norm_over_several_axes_is_refused_by_name(refused: Refused) -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 4, 4), nn.LayerNorm([4, 4, 4]), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x)).flatten(1))

    with refused(ExportError, "export.layer-norm-axes"):
        stays_float(insert(Image(), Scheme(4, 4)), (3, 16, 16))
