"""A file is compared with the network it was made from, layer by layer; every way of being another one is found and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.errors import GateError
from qkd.export import (
    Uint8Input,
    emit,
    emit_float,
    float_parity,
    require,
    require_parity,
    save,
    torch_parity,
    verify,
)
from qkd.export.session import optimized
from tests.support.refusals import Refused
from tests.support.tiny_products import MIDDLES, SHAPE, WIDTH, Head, Middle, Residual, block, images, logits, product


@pytest.mark.parametrize("scheme", ["w8a8", "w2a2"])
@pytest.mark.parametrize("network", [Residual, *MIDDLES])
def test_a_file_is_the_network_it_was_made_from(network: type[nn.Module], scheme: str) -> None:
    torch.manual_seed(0)
    trained = product(network(), scheme)
    found = torch_parity(trained, emit(trained, SHAPE, storage="packed"), images())
    # at two bits the bias of a channel that a batch norm makes almost constant may be off by a sixth of an output's step
    least = 97 if scheme == "w2a2" else 99
    assert found.wrong == "" and found.quantizers >= 4 and least < found.same <= 100
    require_parity(found, "file")


def _moved(norm: str) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        network.get_submodule(norm).running_mean += 0.5  # type: ignore[operator]

    return change


def _negated(layer: str) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        network.get_submodule(layer).weight.data.neg_()  # type: ignore[operator, union-attr]

    return change


def _added(layer: str) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        network.get_submodule(layer).bias.data += 0.2  # type: ignore[operator, union-attr]

    return change


def _unpadded(network: nn.Module) -> None:
    """The same size, but windows that lie elsewhere."""
    network.get_submodule("pool").padding = 0  # type: ignore[assignment]
    network.get_submodule("pool").ceil_mode = True  # type: ignore[assignment]


def _coarser(network: nn.Module) -> None:
    network.get_submodule("relu").act_quant.core.step.data *= 2  # type: ignore[union-attr, operator]


WRONG: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "a batch norm": (_moved("stem.1"), "stem.2: "),
    "a sign": (_negated("conv"), "norm_quant: "),
    "a pool": (_unpadded, "body.2: "),
    "a scale": (_coarser, "relu: "),
    "a depthwise layer": (_negated("depthwise.0"), "depthwise.2: "),
    "the last bias": (_added("head.fc"), "logits: "),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_network_is_found_at_its_first_layer(what: str, tmp_path: Path, refused: Refused) -> None:
    torch.manual_seed(0)
    trained = product(Residual(), "w4a4")
    emitted = emit(trained, SHAPE)
    change, where = WRONG[what]
    with torch.no_grad():
        change(trained)
    found = torch_parity(trained, emitted, images())
    assert found.wrong.startswith(where)
    with refused(GateError, "gate.other-network"):
        require_parity(dataclasses.replace(found, wrong=f"{where}3 of 9 integers"), tmp_path / "x.onnx")
    # the emulator reads the file, and so cannot know
    require(verify(save(emitted.model, tmp_path / "x.onnx"), images(), reference_logits=logits(trained, images())))


def test_a_float_layer_is_compared_with_the_network_too() -> None:
    class Curved(Middle):
        def __init__(self) -> None:
            super().__init__()
            self.curve, self.last = nn.Hardswish(), nn.Conv2d(WIDTH, WIDTH, 1)

        def middle(self, first: Tensor, second: Tensor) -> Tensor:
            return torch.relu(self.last(self.curve(second)))

    trained = product(Curved(), "w8a8")
    emitted = emit(trained, SHAPE)
    assert emitted.float_layers and torch_parity(trained, emitted, images()).wrong == ""
    trained.set_submodule("curve", nn.SiLU())
    assert torch_parity(trained, emitted, images()).wrong.startswith("curve_quant: ")


def test_a_file_with_uint8_input_is_compared_with_the_network_on_normalised_images() -> None:
    uint8_input = Uint8Input(np.full(3, 1 / 128, np.float32), np.full(3, -1, np.float32), "nhwc")
    pixels = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    trained = product(Residual(), "w4a4")
    emitted = emit(trained, SHAPE, raw=uint8_input)
    assert torch_parity(trained, emitted, uint8_input.arranged(pixels), uint8_input.normalized(pixels)).wrong == ""
    assert torch_parity(
        trained, emitted, uint8_input.arranged(pixels), uint8_input.normalized(pixels) + 1
    ).wrong.startswith("inputs_quant")


def test_a_float_file_is_compared_with_the_float_network() -> None:
    trained = product(Residual(), "w2a2")
    model = emit_float(trained, SHAPE)
    assert float_parity(trained, model, images()) == ""
    with torch.no_grad():
        _moved("norm")(trained)
    assert float_parity(trained, model, images()).startswith("logits: off by up to ")


def test_numbers_that_are_not_finite_are_never_alike() -> None:
    trained = product(Residual(), "w4a4")
    emitted = emit(trained, SHAPE)
    with torch.no_grad():
        trained.get_submodule("norm").running_mean += torch.nan  # type: ignore[operator]
    assert torch_parity(trained, emitted, images()).wrong.startswith("norm_quant: ")


class Shifted(Middle):
    """A constant behind a layer: onnxruntime makes it a part of the layer, which then has a quantizer directly behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.5, WIDTH).reshape(1, -1, 1, 1))
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv.weight.data *= torch.logspace(-2, 0, WIDTH).reshape(-1, 1, 1, 1)  # no one scale fits all channels

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return F.relu(self.conv(second) + self.shift)


def test_onnxruntime_is_not_left_to_round_a_float_layer_anew() -> None:
    torch.manual_seed(0)
    trained = product(Shifted(), "w4a8")
    emitted = emit(trained, SHAPE)
    assert [name for name, _ in emitted.float_layers] == ["conv", "add"]
    assert not [tensor.name for tensor in optimized(emitted.model).graph.initializer if "_weight_q" in tensor.name]
    assert torch_parity(trained, emitted, images()).wrong == ""


class Cropped(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), block(WIDTH // 2, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.last(F.pad(self.conv(second)[:, -3:, 1:-1, ::2], (0, 1)))


@pytest.mark.parametrize("scheme", ["w8a8", "w2a2"])
def test_a_layer_whose_result_is_cut_or_padded_before_it_is_rounded_is_integer(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = product(Cropped(), scheme)
    emitted = emit(trained, SHAPE)
    assert emitted.float_layers == () and torch_parity(trained, emitted, images()).wrong == ""
    require(verify(save(emitted.model, tmp_path / "x.onnx"), images()))


def test_a_head_of_its_own_is_compared_as_well() -> None:
    trained = product(nn.Sequential(block(3, 8), Head(8)), "w3a5")
    assert torch_parity(trained, emit(trained, SHAPE), images(3)).quantizers == 3
