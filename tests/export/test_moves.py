"""What moves values hands their grid on: no second quantizer, all levels of the first, and the same integers in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.errors import ExportError
from qkd.export import emit, require, save, torch_parity, verify
from qkd.quantizers import disabled, quantizers
from tests.support.refusals import Refused
from tests.support.tiny_products import SHAPE, WIDTH, Middle, block, images, logits, product, with_trained_norms

HALF = WIDTH // 2
Halves = Callable[[Tensor], tuple[Tensor, Tensor]]


class Moved(Middle):
    """A cross-stage-partial block: either half of a tensor through a layer, then both joined and mixed."""

    width = 2 * HALF

    def __init__(self, halves: Halves) -> None:
        super().__init__()
        self.halves = halves
        self.one, self.two, self.mix = block(HALF, HALF), block(HALF, HALF), block(2 * HALF, 2 * HALF)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        one, two = self.halves(second)
        return self.mix(torch.cat([self.one(one), self.two(two)], 1))


def _chunks(x: Tensor) -> tuple[Tensor, Tensor]:
    one, two = x.chunk(2, 1)
    return one, two


SAME: dict[str, Halves] = {
    "slice": lambda x: (x[:, :HALF], x[:, HALF:]),
    "split": lambda x: (x.split(HALF, 1)[0], torch.split(x, HALF, 1)[1]),
    "clone": lambda x: _chunks(x.clone()),
    "detach": lambda x: _chunks(x.detach()),
    "float": lambda x: _chunks(x.float()),
    "to": lambda x: _chunks(x.to(torch.float32)),
    "contiguous": lambda x: _chunks(x.contiguous()),
    "pad": lambda x: _chunks(F.pad(x, (0, 1, 0, 1))[:, :, :-1, :-1]),
    "permute": lambda x: _chunks(x.permute(0, 1, 3, 2).transpose(2, 3)),
    "reshape": lambda x: _chunks(x.reshape(x.shape[0], WIDTH, -1).view(x.shape)),
    "flatten": lambda x: _chunks(x.flatten(2).view(x.shape)),
    "cat of parts": lambda x: _chunks(torch.cat([x[:, :2], x[:, 2:]], 1)),
    "cat of a chunk": lambda x: _chunks(torch.cat(x.chunk(3, 1), 1)),
    "slice of a slice": lambda x: (x[:, : HALF + 1][:, :HALF], x[:, 1:][:, HALF - 1 :]),
}


def _input_of(network: nn.Module, layer: str) -> Tensor:
    """What a layer reads."""
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda layer, inputs, output: found.append(inputs[0]))
    logits(network, images(64))
    hook.remove()
    return found[0]


def _read(network: nn.Module) -> dict[str, int]:
    """How many different values every layer of the block reads."""
    return {name: len(_input_of(network, name).unique()) for name in ("one.0", "two.0", "mix.0")}


def _made(network: Callable[[], nn.Module], scheme: str) -> tuple[nn.Module, nn.Module]:
    """A float network with the batch norms of a trained one, and the product of the same weights."""
    torch.manual_seed(0)
    plain = with_trained_norms(network())
    return plain, product(plain, scheme)


def _proven(trained: nn.Module, path: Path) -> None:
    emitted = emit(trained, SHAPE)
    assert torch_parity(trained, emitted, images()).wrong == ""
    verdict = verify(save(emitted.model, path), images(), reference_logits=logits(trained, images()))
    require(verdict)
    assert verdict.equal_fraction == 1


@pytest.mark.parametrize("spelling", SAME)
def test_however_the_halves_are_taken_the_grid_is_the_same(spelling: str, tmp_path: Path) -> None:
    _, chunked = _made(lambda: Moved(_chunks), "w2a2")
    _, trained = _made(lambda: Moved(SAME[spelling]), "w2a2")
    assert [name for name, _ in quantizers(trained)] == [name for name, _ in quantizers(chunked)]
    assert _read(trained) == _read(chunked) and _read(trained)["one.0"] == 4
    assert np.array_equal(logits(trained, images()), logits(chunked, images()))
    assert emit(trained, SHAPE).float_layers == ()
    _proven(trained, tmp_path / "student.onnx")


class Ghost(Middle):
    """GhostNet: cheap features beside the others, and only as many of both as are wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.cheap, self.last = block(WIDTH, WIDTH, groups=WIDTH), block(WIDTH + 2, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.last(torch.cat([second, self.cheap(second)], 1)[:, : WIDTH + 2, :, :])


class Focus(Middle):
    """YOLO: every other pixel as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.last = block(2 * WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.last(torch.cat([second[:, :, ::2, ::2], second[:, :, 1::2, 1::2]], 1))


class Pyramid(Middle):
    """YOLO: maxima of ever larger windows, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.last = nn.MaxPool2d(3, 1, 1), block(3 * WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        once = self.pool(second)
        return self.last(torch.cat([second, once, self.pool(once)], 1))


class Shuffle(Middle):
    """ShuffleNet: one half passes, the other goes through a layer; then channels are shuffled, with slices throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = block(HALF, HALF), block(WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        joined = torch.cat([second[:, :HALF], self.branch(second[:, HALF:])], 1)
        return self.last(torch.cat([joined[:, ::2], joined[:, 1::2]], 1))


@pytest.mark.parametrize("network", [Ghost, Focus, Pyramid, Shuffle])
def test_networks_that_slice_use_every_level(network: type[Middle], tmp_path: Path) -> None:
    _, trained = _made(network, "w2a2")
    assert len(_input_of(trained, "last.0").unique()) == 4
    assert emit(trained, SHAPE).float_layers == ()
    _proven(trained, tmp_path / "student.onnx")


class Between(Middle):
    """A move between a convolution and the ReLU that rounds its result."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move, self.conv = move, nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return F.relu(self.move(self.conv(second)))


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda x: x.clone(),
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "slice": lambda x: x[:, :, 1:],
    "pad": lambda x: F.pad(x, (1, 1)),
    "cat of one": lambda x: torch.cat([x], 1),
}


@pytest.mark.parametrize("spelling", BETWEEN)
def test_a_move_in_front_of_a_relu_leaves_the_layer_integer(spelling: str, tmp_path: Path) -> None:
    _, trained = _made(lambda: Between(BETWEEN[spelling]), "w4a4")
    assert emit(trained, SHAPE).float_layers == ()
    _proven(trained, tmp_path / "student.onnx")


class Negative(Middle):
    """Features times a negative number, however it is written."""

    def __init__(self, negative: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.negative, self.third = negative, block(WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.third(self.negative(second))


class Opponent(Middle):
    """What one branch finds minus what the other does, the minus written as a factor."""

    width = 2 * WIDTH

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second * -1.0], 1)


NEGATIVE: dict[str, Callable[[], nn.Module]] = {
    "x * -1": lambda: Negative(lambda x: x * -1),
    "-1 * x": lambda: Negative(lambda x: -1 * x),
    "mul": lambda: Negative(lambda x: torch.mul(x, -1)),
    "div": lambda: Negative(lambda x: x / -1),
    "0 - x": lambda: Negative(lambda x: 0 - x),
    "opponent": Opponent,
}


@pytest.mark.parametrize("spelling", NEGATIVE)
def test_negative_features_stay_what_they_are(spelling: str, tmp_path: Path) -> None:
    plain, trained = _made(NEGATIVE[spelling], "w8a8")
    expected = logits(plain, images())
    with disabled(trained):
        assert np.allclose(logits(trained, images()), expected, atol=1e-5)
    layer = "head.gap" if spelling == "opponent" else "third.0"
    exact, rounded = (_input_of(network, layer) for network in (plain, trained))
    assert exact.min() < 0 and (rounded - exact).norm() < 0.02 * exact.norm()
    _proven(trained, tmp_path / "student.onnx")


def test_another_type_of_floats_is_refused(refused: Refused) -> None:
    with refused(ExportError, "export.other-type"):
        emit(product(Moved(lambda x: _chunks(x.to(torch.float64).float()))), SHAPE)
