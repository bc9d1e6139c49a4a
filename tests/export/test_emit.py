"""Emission: everything integer, the trained integers in the file, clear refusals, the float file beside it."""

from __future__ import annotations

import json
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import onnx
import pytest
import torch
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from qkd.errors import ExportError, UsageError
from qkd.export import count_operators, emit, emit_float, emulate, predict, save
from qkd.export.codes import codes, narrowest
from qkd.export.fold import BIAS_LIMIT, to_integers, trained_integers
from qkd.export.invariants import constant_value, require_invariants
from qkd.export.onnx_graph import Graph
from qkd.export.pack import store
from qkd.export.parity import torch_parity
from qkd.quantizers import Scheme, disabled, insert
from tests.support.refusals import Refused
from tests.support.tiny_products import (
    INTEGER_KERNELS,
    MIDDLES,
    SHAPE,
    Head,
    Middle,
    Residual,
    block,
    images,
    logits,
    product,
    stored,
    with_another_unit,
)

SCHEMES = ("w8a8", "w4a8", "w4a4", "w3a5", "w2a2")


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_residual_network_runs_in_integers_from_end_to_end(scheme: str, per_channel: bool) -> None:
    emitted = emit(product(Residual(), scheme, per_channel=per_channel), SHAPE)
    found = count_operators(emitted.model)
    assert emitted.float_layers == ()
    assert set(found) <= INTEGER_KERNELS
    assert (
        found["QLinearConv"] == 4 and found["QLinearAdd"] == 1 and found["QGemm"] == 1 and found["QuantizeLinear"] == 1
    )
    assert "DequantizeLinear" not in found
    assert emitted.integer_layers == ("stem.0", "pool", "body.0", "conv", "add", "depthwise.0", "head.gap", "head.fc")


@pytest.mark.parametrize("network", MIDDLES)
def test_every_supported_operation_is_integer_and_what_was_trained(network: type[Middle]) -> None:
    trained = product(network(), "w8a8")
    emitted = emit(trained, SHAPE)
    assert emitted.float_layers == () and set(count_operators(emitted.model)) <= INTEGER_KERNELS
    reference, found = logits(trained, images()), predict(emitted.model, images())
    assert np.abs(reference - found).max() < 0.1 * reference.std()
    assert np.array_equal(emulate(emitted.model, images()), found)


def test_file_holds_the_trained_integers_and_the_batch_norm_only_changes_scales() -> None:
    trained = product(Residual(), "w4a4")
    layer, norm = trained.get_submodule("conv"), trained.get_submodule("norm")
    integers = layer.quant_weight().int().numpy()
    held = stored(emit(trained, SHAPE, headroom=0).model, "conv")
    signs = np.sign(norm.weight.detach().numpy()).reshape(-1, 1, 1, 1)
    assert (signs < 0).any() and (signs > 0).any()
    assert np.array_equal(held.integers, integers * signs)
    folded = norm.weight.detach().abs() / torch.sqrt(norm.running_var + norm.eps)
    expected = (layer.quant_weight().scale.flatten() * folded).detach().numpy()
    assert held.scales == pytest.approx(expected, rel=1e-6)


def test_bias_scale_is_bit_for_bit_input_scale_times_weight_scale() -> None:
    trained = product(Residual(), "w4a4")
    held = stored(emit(trained, SHAPE).model, "conv")
    input_scale = np.float32(trained.get_submodule("body.2").act_quant.scale().item())
    assert np.array_equal(held.units, input_scale * held.scales)
    assert held.bias.dtype == np.int32 and held.integers.dtype == np.int8


def test_headroom_makes_low_bit_biases_finer() -> None:
    trained = product(Residual(), "w2a2")
    norm = trained.get_submodule("conv"), trained.get_submodule("norm")
    factor = norm[1].weight / torch.sqrt(norm[1].running_var + norm[1].eps)
    bias = (norm[1].bias - norm[1].running_mean * factor).detach().numpy()

    def error(headroom: int) -> float:
        held = stored(emit(trained, SHAPE, headroom=headroom).model, "conv")
        assert np.abs(held.integers).max() <= max(headroom, 3)
        return float(np.abs(held.bias * held.units.astype(np.float64) - bias).max())

    assert error(63) < 0.1 * error(0)


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-12, 1e-7])
def test_dead_channels_are_their_bias(gamma: float) -> None:
    network = Residual()
    trained = product(network, "w4a4")
    norm = trained.get_submodule("stem.1")
    norm.weight.data[:3] = gamma
    norm.bias.data[:3] = torch.tensor([2.0, 0.0, -1.0])
    emitted = emit(trained, SHAPE)
    assert np.abs(tensors(emitted.model)["stem.0.bias"]).max() <= BIAS_LIMIT
    found, reference = predict(emitted.model, images()), logits(trained, images())
    assert np.array_equal(found, emulate(emitted.model, images()))
    assert np.abs(found - reference).max() < 0.5 * reference.std()


def test_weights_of_zeros_alone_leave_an_exact_bias() -> None:
    weight = to_integers(np.zeros((2, 3, 1, 1)), np.array([0.1, 0.1]), np.array([1.234567, 0.0]), np.float32(0.5), 63)
    assert (weight.integers == 0).all() and (weight.scales > 0).all()
    assert weight.bias[0] * np.float64(weight.bias_scales[0]) == pytest.approx(1.234567, rel=1e-7)


@pytest.mark.parametrize(
    ("scheme", "opset", "minimum"), [("w4a4", 21, "1.23"), ("w2a2", 25, "1.24"), ("w8a8", 17, "1.19")]
)
def test_packed_weights_give_the_same_logits_in_fewer_bytes(scheme: str, opset: int, minimum: str) -> None:
    trained = product(Residual(), scheme)
    plain, packed = emit(trained, SHAPE), emit(trained, SHAPE, storage="packed")
    assert packed.model.opset_import[0].version == opset and packed.minimum_onnxruntime == minimum
    assert plain.model.opset_import[0].version == 17
    assert np.array_equal(predict(plain.model, images()), predict(packed.model, images()))
    assert count_operators(plain.model) == count_operators(packed.model)
    held = {t.name: t for t in packed.model.graph.initializer}["conv.weight"]
    kinds = {"w2a2": TensorProto.INT2, "w4a4": TensorProto.INT4, "w8a8": TensorProto.INT8}
    assert held.data_type == kinds[scheme]
    assert len(held.raw_data) == 6 * 6 * 9 * int(scheme[1]) // 8


def test_packed_codes_read_back_as_they_were_for_every_size() -> None:
    generator = np.random.default_rng(0)
    for low, high, odd in ((-2, 1, 0), (-8, 7, 0), (-2, 1, 1), (-8, 7, 1)):
        for size in range(1, 9):
            integers = generator.integers(low, high + 1, (2, size))
            integers[:, 0] = low, high
            integers = 2 * integers + 1 if odd else integers
            weight = to_integers(integers, np.ones(2), np.array([0.3, 0.7]), np.float32(0.1), 63)
            graph = Graph()
            name = store(graph, weight, "layer", "packed")
            constants = {tensor.name: tensor for tensor in graph.initializers}
            makers = {node.output[0]: node for node in graph.nodes}
            assert np.array_equal(constant_value(name, constants, makers), weight.integers)


@pytest.mark.parametrize(
    ("chosen", "levels", "codes"),
    [("mid_rise", 4, {-3, -1, 1, 3}), ("narrow", 3, {-1, 0, 1}), ("full", 4, {-2, -1, 0, 1})],
)
def test_two_bits_are_two_bits_in_a_packed_file_and_exact(chosen: str, levels: int, codes: set[int]) -> None:
    trained = product(Residual(), "w2a2", weight_levels=chosen, calibration="mse")
    integers, _ = trained_integers(trained.get_submodule("conv"), "conv")
    assert set(np.unique(integers)) == codes  # the batch norm behind it has gammas of both signs
    plain, packed = emit(trained, SHAPE), emit(trained, SHAPE, storage="packed")
    held = {t.name: t for t in packed.model.graph.initializer}["conv.weight"]
    assert held.data_type == TensorProto.INT2 and len(held.raw_data) == integers.size // 4
    assert np.array_equal(tensors(plain.model)["conv.weight"], _read(packed.model, "conv.weight"))
    expected = predict(plain.model, images())
    assert np.array_equal(predict(packed.model, images()), expected)
    assert np.array_equal(emulate(packed.model, images()), expected)
    assert torch_parity(trained, packed, images()).wrong == ""
    inner = {each.layer: each for each in packed.resolution}["conv"]
    assert (inner.weight_bits, inner.weight_levels) == (2, levels)


def _read(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The int8 weights that a packed initialiser becomes, read as onnxruntime reads them."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    reached = name
    while reader := next(
        (n for n in model.graph.node if reached in n.input and n.op_type in ("Cast", "Mul", "Add")), None
    ):
        reached = reader.output[0]
    return constant_value(reached, constants, makers)


@pytest.mark.parametrize("family", ["hwgq", "ewgs", "dorefa", "pact", "lsq_plus", "pot", "ternary"])
def test_every_family_has_two_bits_in_a_packed_file(family: str) -> None:
    trained = product(Residual(), "w2a4", family=family)
    packed = emit(trained, SHAPE, storage="packed")
    held = {t.name: t for t in packed.model.graph.initializer}["conv.weight"]
    assert held.data_type == TensorProto.INT2
    assert np.array_equal(predict(packed.model, images()), predict(emit(trained, SHAPE).model, images()))


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_odd_integers_take_as_many_bits_as_they_have_levels(bits: int) -> None:
    trained = np.array([[-(2**bits) + 1, 1, 2**bits - 1], [1, -1, 1]])
    numbers, times, plus = codes(trained, np.array([1, 1]), bits)
    assert numbers.min() >= -(2 ** (bits - 1)) and numbers.max() < 2 ** (bits - 1)
    assert np.array_equal(numbers * times[:, None] + plus[:, None], trained)
    assert codes(trained, np.array([1, 1]), bits - 1) is None and narrowest(trained)[0] == bits
    mixed = np.array([[-(2**bits) + 1, 0, 1], [1, -1, 1]])
    assert codes(mixed, np.array([1, 1]), bits) is None


def test_products_that_exceed_int8_are_not_written_as_codes() -> None:
    assert codes(np.array([[-3, 3]]), np.array([32]), 2) is not None
    assert codes(np.array([[-3, 3]]), np.array([33]), 2) is None


def test_a_grid_that_a_batch_norm_inverted_stays_in_its_bits() -> None:
    numbers, times, plus = codes(np.array([[-2, 1, 0], [2, -1, 0]]), np.array([5, 5]), 2)
    assert times.tolist() == [5, -5] and plus.tolist() == [0, 0]
    assert np.array_equal(numbers, [[-2, 1, 0], [-2, 1, 0]])


def test_hwgq_weights_without_a_zero_become_odd_integers() -> None:
    trained = product(Residual(), "w2a4", family="hwgq")
    emitted = emit(trained, SHAPE, headroom=0)
    assert set(np.unique(np.abs(tensors(emitted.model)["conv.weight"]))) == {1, 3}
    found = predict(emit(trained, SHAPE).model, images())
    assert np.abs(found - logits(trained, images())).max() < 0.2 * found.std()


def by_hand(weight: type, calls: int = 3) -> nn.Module:
    """A network of Brevitas' own layers and quantizers."""
    network = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8),
        qnn.QuantConv2d(3, 8, 3, weight_quant=weight, weight_bit_width=4, bias=False),
        nn.BatchNorm2d(8),
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4),
        nn.AdaptiveAvgPool2d(1),
        qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, bit_width=8),
        nn.Flatten(),
        qnn.QuantLinear(8, 5, bias=True, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=8),
    )
    for _ in range(calls):
        network.train()(torch.from_numpy(images()))
    return network.eval()


@pytest.mark.parametrize("weight", [Int8WeightPerChannelFloat, Int8WeightPerTensorFloat])
def test_layers_with_brevitas_own_quantizers(weight: type) -> None:
    trained = by_hand(weight)
    emitted = emit(trained, SHAPE)
    assert emitted.float_layers == () and set(count_operators(emitted.model)) <= INTEGER_KERNELS
    found = predict(emitted.model, images())
    assert np.array_equal(found, emulate(emitted.model, images()))
    assert np.abs(found - logits(trained, images())).max() < 0.1 * found.std()


def test_uncalibrated_quantizers_are_refused_by_name(refused: Refused) -> None:
    with refused(ExportError, "export.uncalibrated"):
        emit(insert(Residual(), Scheme.parse("w4a4")), SHAPE)
    with refused(ExportError, "export.uncalibrated"):
        emit(by_hand(Int8WeightPerChannelFloat, calls=0), SHAPE)


class Unknown(Middle):
    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cumsum(second, dim=2)


def test_an_operation_without_onnx_form_is_named_with_what_is_possible(refused: Refused) -> None:
    with refused(ExportError, "export.no-onnx-form"):
        emit(product(Unknown()), SHAPE)


class Unequal(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(5)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.pool(second)


def test_images_of_the_wrong_size_are_one_clear_error(refused: Refused) -> None:
    with refused(ExportError, "export.unequal-windows"):
        emit(product(Unequal()), SHAPE)
    with pytest.raises(ExportError, match=r"does not take images of 1x12x12: ") as wrong:  # torch's wording follows
        emit(product(Residual()), (1, 12, 12))
    assert wrong.value.key == "export.wrong-image-size"
    with refused(UsageError, "export.unknown-storage"):
        emit(product(Residual()), SHAPE, storage="packd")


class Swish(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.swish, self.last = nn.Conv2d(6, 6, 1), nn.Hardswish(), nn.Conv2d(6, 6, 1)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.relu(self.last(self.swish(self.conv(second))))


def test_what_stays_float_is_named_with_the_reason_and_still_right() -> None:
    trained = product(Swish(), "w8a8")
    emitted = emit(trained, SHAPE)
    reasons = dict(emitted.float_layers)
    assert set(reasons) == {"swish"}
    assert "no integer HardSwish" in reasons["swish"]
    assert {"conv", "last"} <= set(emitted.integer_layers)
    assert "last" in emitted.integer_layers and "first.0" in emitted.integer_layers
    assert json.loads({p.key: p.value for p in emitted.model.metadata_props}["float_layers"]) == reasons
    found = predict(emitted.model, images())
    assert np.abs(found - logits(trained, images())).max() < 0.1 * found.std()


def test_the_file_has_one_input_a_symbolic_batch_and_the_metadata() -> None:
    model = emit(product(Residual()), SHAPE, metadata={"labels": '["a", "b"]'}).model
    (only,) = model.graph.input
    sizes = only.type.tensor_type.shape.dim
    assert sizes[0].dim_param == "N" and [size.dim_value for size in sizes[1:]] == list(SHAPE)
    assert not {tensor.name for tensor in model.graph.initializer} & {only.name}
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["labels"] == '["a", "b"]' and metadata["minimum_onnxruntime"] == "1.19"
    assert metadata["float_layers"] == "{}"


def test_emission_is_deterministic() -> None:
    trained = product(Residual(), "w2a2")
    first, second = (emit(trained, SHAPE, storage="packed").model.SerializeToString() for _ in range(2))
    assert first == second


def test_float_file_is_the_network_without_rounding() -> None:
    trained = product(Residual(), "w2a2")
    model = emit_float(trained, SHAPE)
    with disabled(trained):
        reference = logits(trained, images())
    assert predict(model, images()) == pytest.approx(reference, abs=1e-4)
    found = count_operators(model)
    assert "BatchNormalization" not in found and not any("Linear" in kind for kind in found)
    uncalibrated = insert(Residual(), Scheme.parse("w4a4")).eval()
    emit_float(uncalibrated, SHAPE)
    plain = nn.Sequential(block(3, 4), nn.ReLU6(), Head(4)).eval()
    assert predict(emit_float(plain, SHAPE), images()) == pytest.approx(logits(plain, images()), abs=1e-4)


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    model = emit(product(Residual()), SHAPE).model
    path = save(model, tmp_path / "deep" / "student.onnx")
    assert onnx.load(str(path)) == model
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(emit_float(product(Residual()), SHAPE), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["student.onnx"]
    (tmp_path / "file").write_text("")
    with refused(ExportError, "export.cannot-write"):
        save(model, tmp_path / "file" / "student.onnx")


def broken(change: str) -> onnx.ModelProto:
    model = emit(product(Residual()), SHAPE).model
    if change == "bias scale":
        with_another_unit(model, "conv", 1.01)
    if change == "bias reaches":
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), 2**30), bias.name))
    if change == "inputs":
        model.graph.input.append(onnx.helper.make_tensor_value_info("conv.bias", TensorProto.INT32, [6]))
    return model


@pytest.mark.parametrize("change", ["bias scale", "bias reaches", "inputs"])
def test_broken_invariants_stop_the_export(change: str, refused: Refused) -> None:
    with refused(ExportError, "export.broken-invariant"):
        require_invariants(broken(change))
    require_invariants(broken("nothing"))


class SharedLayers(Middle):
    """One convolution called twice, and a tensor that two quantizers' readers need."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(6, 6, 3, padding=1)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.relu(self.shared(torch.relu(self.shared(second))) + first)


def test_a_layer_called_twice_is_written_twice_under_two_names() -> None:
    emitted = emit(product(SharedLayers(), "w4a4"), SHAPE)
    assert emitted.float_layers == () and count_operators(emitted.model)["QLinearConv"] == 4
    assert {"shared", "shared.call2"} <= set(emitted.integer_layers)
    assert set(emitted.integer_layers) <= {node.name for node in emitted.model.graph.node}
    assert np.array_equal(predict(emitted.model, images()), emulate(emitted.model, images()))
