"""The emulator: equal to onnxruntime on every logit, checked against a third program, exact where it says so."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from qkd.errors import ExportError
from qkd.export import count_operators, emit, emit_float, emulate, emulator_kernels, first_divergence, predict
from qkd.export.emulator_kernels import EXACT, Quantized, exact_product
from qkd.export.emulator_nodes import Emulation
from qkd.export.op_tables import EMULATIONS
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert
from tests.support.refusals import Refused
from tests.support.tiny_products import INTEGER_KERNELS, MIDDLES, SHAPE, Head, Residual, block, images, product
from tests.support.tiny_products import WIDTH as W


@pytest.mark.parametrize("scheme", ["w8a8", "w5a3", "w2a2"])
@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_equal_to_onnxruntime_on_every_logit(scheme: str, storage: Any) -> None:
    model = emit(product(Residual(), scheme), SHAPE, storage=storage).model
    inputs = images(100)
    assert np.array_equal(emulate(model, inputs), predict(model, inputs))
    assert first_divergence(model, inputs) is None


@pytest.mark.parametrize("network", MIDDLES)
def test_equal_for_every_operation_at_low_bits(network: type[nn.Module]) -> None:
    model = emit(product(network(), "w3a4"), SHAPE).model
    assert np.array_equal(emulate(model, images(64)), predict(model, images(64)))


class Random(nn.Module):
    """A chain of drawn operations; ``add`` and ``concat`` reach back to the last tensor of the same image size."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        super().__init__()
        self.steps, self.parts, width = steps, nn.ModuleList(), 3
        for step in steps:
            kind = step["kind"]
            if kind == "conv":
                groups = {"depthwise": width, "grouped": 2 if width % 2 == 0 else 1, "dense": 1}[step["groups"]]
                outputs = width if groups > 1 else step["outputs"]
                part: nn.Module = block(width, outputs, step["size"], stride=step["stride"], groups=groups)
                if not step["relu"]:
                    part = part[:2]
                width = outputs
            elif kind == "concat":
                part, width = block(width, 4, 1), width + 4
            elif kind == "add":
                part = block(width, width, 3)[: 3 if step["relu"] else 2]
            else:
                part = nn.MaxPool2d(3, 2, 1) if kind == "max" else nn.AvgPool2d(3, 1, 1)
            self.parts.append(part)
        self.head = Head(width)

    def forward(self, features: Tensor) -> Tensor:
        for step, part in zip(self.steps, self.parts, strict=True):
            result = part(features)
            if step["kind"] == "add":
                result = torch.relu(result + features) if step["relu"] else result + features
            features = torch.cat([features, result], 1) if step["kind"] == "concat" else result
        return self.head(features)


CONV = st.fixed_dictionaries(
    {
        "kind": st.just("conv"),
        "groups": st.sampled_from(["dense", "grouped", "depthwise"]),
        "outputs": st.sampled_from([4, 6, 8, 16]),
        "size": st.sampled_from([1, 3, 5]),
        "stride": st.sampled_from([1, 1, 2]),
        "relu": st.booleans(),
    }
)
OTHER = st.fixed_dictionaries({"kind": st.sampled_from(["add", "concat", "max", "average"]), "relu": st.booleans()})
SCHEMES = st.tuples(st.integers(2, 8), st.integers(2, 8), st.booleans(), st.sampled_from([2, 4, 8]))


@settings(derandomize=True, deadline=None, max_examples=30, database=None)
@given(st.lists(st.one_of(CONV, OTHER), min_size=1, max_size=5), SCHEMES, st.integers(0, 99))
def test_random_networks_are_integer_and_equal(
    steps: list[dict[str, Any]], scheme: tuple[int, int, bool, int], seed: int
) -> None:
    torch.manual_seed(seed)
    weights, activations, per_channel, sums = scheme
    trained = product(Random(steps), f"w{weights}a{activations}", per_channel=per_channel, sums=sums)
    emitted = emit(trained, SHAPE, storage="packed" if seed % 2 else "int8")
    assert emitted.float_layers == () and set(count_operators(emitted.model)) <= INTEGER_KERNELS
    assert np.array_equal(emulate(emitted.model, images()), predict(emitted.model, images()))


class Gated(nn.Module):
    """Squeeze-and-excitation: sigmoid and a product that broadcasts, both with integer kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.squeeze, self.excite = block(3, W), nn.Conv2d(W, W, 1), nn.Conv2d(W, W, 1)
        self.pool, self.head, self.leaky = nn.AdaptiveAvgPool2d(1), Head(W), nn.LeakyReLU(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(self.pool(features)))))
        return self.head(self.leaky(features * gate))


def test_equal_where_layers_stayed_float() -> None:
    gated = Gated()
    gated.leaky = nn.Hardswish()
    emitted = emit(product(gated, "w8a8"), SHAPE)
    assert emitted.float_layers
    assert np.array_equal(emulate(emitted.model, images()), predict(emitted.model, images()))


@pytest.mark.parametrize("scheme", ["w8a8", "w2a2"])
def test_an_independent_oracle_agrees(scheme: str) -> None:
    model = emit(product(Residual(), scheme), SHAPE).model
    model.opset_import[0].version = 21  # from here on onnx.reference has DequantizeLinear with an axis
    model.ir_version = 10
    few = images(2)
    oracle = ReferenceEvaluator(model).run(None, {"images": few})[0]
    ours = emulate(model, few)
    assert np.abs(oracle - ours).max() < 0.02 * np.abs(ours).max()


def test_first_divergence_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = emit(product(Residual(), "w4a4"), SHAPE).model
    right = emulator_kernels.added

    def wrong(a: Quantized, b: Quantized) -> emulator_kernels.Pending:
        pending = right(a, b)
        return emulator_kernels.Pending(lambda scale, zero: pending.onto(scale, zero) + 1, pending.real)

    monkeypatch.setitem(EMULATIONS, "Add", Emulation(lambda node, operands: wrong(*operands)))
    found = first_divergence(model, images())
    assert found is not None and found.layer == "add" and found.largest == 1 and 0 < found.different <= found.values
    assert "add: " in str(found)


def test_integer_layers_are_judged_by_themselves_behind_float_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = emit(product(Gated(), "w8a8"), SHAPE).model
    assert first_divergence(model, images()) is None
    _without_bias("Gemm", monkeypatch)
    assert first_divergence(model, images()) is None  # the logits are no integers
    _without_bias("Conv", monkeypatch)
    found = first_divergence(model, images())
    assert found is not None and found.layer == "body.0"


def _without_bias(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = EMULATIONS[kind].compute
    monkeypatch.setitem(EMULATIONS, kind, Emulation(lambda node, operands: right(node, operands[:2])))


@settings(derandomize=True, deadline=None, max_examples=25, database=None)
@given(st.integers(1, 4000), st.integers(1, 127), st.sampled_from([1, 8, 21]), st.integers(0, 2**31))
def test_products_are_exact_in_every_regime(size: int, reach: int, factor: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.integers(-128, 256, (2, size))
    weights = generator.integers(-reach, reach + 1, (3, size)) // factor * factor
    integers = Quantized(torch.from_numpy(weights), np.float32(1), np.int8(0))
    x, w = torch.from_numpy(inputs).float(), torch.from_numpy(weights).float()
    found = exact_product(lambda a, b: a @ b.T, x, w, integers.divisors, 256.0)
    assert np.array_equal(found.double().numpy(), (inputs @ weights.T).astype(np.float64))


def test_float32_alone_would_not_be_exact() -> None:
    """The regimes are needed: a plain float32 product of full 8-bit integers is off."""
    inputs, weights = torch.full((1, 4001), 255.0), torch.full((1, 4001), 127.0)
    inputs[0, 0] = weights[0, 0] = 1
    exact = 4000 * 255 * 127 + 1
    assert exact > EXACT and float((inputs @ weights.T).double()) != exact
    integers = Quantized(weights.to(torch.int8), np.float32(1), np.int8(0))
    assert float(exact_product(lambda a, b: a @ b.T, inputs, weights, integers.divisors, 255.0)) == exact


def test_a_model_from_elsewhere_is_refused(refused: Refused) -> None:
    model = emit_float(Residual().eval(), SHAPE)
    model.producer_name = "somebody"
    with refused(ExportError, "model.not-exported-here"):
        emulate(model, images())
    with refused(ExportError, "images.wrong-size"):
        emulate(emit(product(Residual()), SHAPE).model, images(2, (3, 8, 8)))
    with refused(ExportError, "images.shape"):
        emulate(emit(product(Residual()), SHAPE).model, images(0))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w2a2"])
def test_torchvision_networks_are_integer_from_end_to_end(name: str, scheme: str) -> None:
    network = torchvision.models.get_model(name, num_classes=10).eval()
    shape = (3, 64, 64)
    trained = insert(network, Scheme.parse(scheme, calibration="minmax"))
    calibrate(trained, [torch.from_numpy(images(2, shape, seed=2))])
    emitted = emit(trained, shape, storage="packed")
    found = count_operators(emitted.model)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert emitted.float_layers == () and found["QLinearConv"] == convolutions and set(found) <= INTEGER_KERNELS
    inputs = images(2, shape)
    assert np.array_equal(emulate(emitted.model, inputs), predict(emitted.model, inputs))
    onnx.checker.check_model(emitted.model, full_check=True)


@pytest.mark.slow
def test_ten_thousand_images_of_cifar_size_take_less_than_a_minute_on_two_cores() -> None:
    """Measured on a tenth of the images, on one core, in processor time: what waits for other programs does not count."""
    trained = insert(build("resnet20", classes=10), Scheme.parse("w8a8", calibration="minmax"))
    calibrate(trained, [torch.from_numpy(images(8, (3, 32, 32)))])
    model, many = emit(trained.eval(), (3, 32, 32)).model, images(1000, (3, 32, 32))
    emulate(model, many[:64])
    start = time.process_time()
    found = emulate(model, many)
    assert (time.process_time() - start) * 10 / 2 < 60
    assert np.array_equal(found[:64], predict(model, many[:64]))
