"""An operator is added by its record and by entries of the export's tables; nothing else has to know of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from qkd.errors import ExportError
from qkd.export import emit, predict, require, save, torch_parity, verify
from qkd.export.converter import Converter, Value
from qkd.export.emulator_nodes import Emulation, exact_in_float, moving
from qkd.export.fx_nodes import label
from qkd.export.op_tables import EMULATIONS, HANDLERS
from qkd.quantizers.operators import OPERATORS, Operator
from qkd.quantizers.signs import non_negative
from tests.support.tiny_products import SHAPE, WIDTH, Middle, block, images, logits, product


class Flipped(Middle):
    """Moves values: the rows of an image in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.third = block(WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.third(torch.flip(second, [2]))


class Rooted(Middle):
    """An activation function without an integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.third = block(WIDTH, WIDTH)

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return self.third(torch.sqrt(second))


def flip(converter: Converter, node: fx.Node) -> Value:
    end, axis = np.array([np.iinfo(np.int64).min]), np.array(node.args[1])
    parts = [converter.graph.constant(each) for each in (np.array([-1]), end, axis, np.array([-1]))]
    return converter.move(converter.value(node.args[0]), "Slice", label(node), *parts)


def root(converter: Converter, node: fx.Node) -> Value:
    converter.note(label(node), "onnxruntime has no integer Sqrt")
    return Value(converter.graph.node("Sqrt", [converter.value(node.args[0]).name], label(node)))


def reversed_rows(integers: Tensor, node: object, *settings: Tensor) -> Tensor:
    return integers.flip(settings[2].tolist())


@pytest.mark.parametrize("network", [Flipped, Rooted])
def test_an_operator_without_a_record_is_refused(network: type[Middle]) -> None:
    with pytest.raises(ExportError, match=r"(flip|sqrt): (flip|sqrt) has no ONNX form here") as refusal:
        emit(product(network()), SHAPE)
    assert refusal.value.key == "export.no-onnx-form"


def test_an_operator_that_moves_values_stays_integer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(OPERATORS, "flip", Operator("flip", "pass", functions=(torch.flip,), moves=True))
    monkeypatch.setitem(HANDLERS, "flip", flip)
    monkeypatch.setitem(EMULATIONS, "Slice", Emulation(moving(reversed_rows), is_layer=False))
    trained = product(Flipped())
    emitted = emit(trained, SHAPE)
    assert emitted.float_layers == () and torch_parity(trained, emitted, images()).wrong == ""
    assert proven(emitted.model, trained, tmp_path / "flipped.onnx")


def test_an_operator_of_floats_reads_and_writes_grids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(
        OPERATORS, "sqrt", Operator("sqrt", "curve", functions=(torch.sqrt,), methods=("sqrt",), sign=non_negative)
    )
    monkeypatch.setitem(HANDLERS, "sqrt", root)
    monkeypatch.setitem(EMULATIONS, "Sqrt", Emulation(exact_in_float(torch.sqrt)))
    trained = product(Rooted())
    emitted = emit(trained, SHAPE)
    assert [name for name, _ in emitted.float_layers] == ["sqrt"] and "third.0" in emitted.integer_layers
    assert not trained.get_submodule("sqrt_quant").act_quant.is_signed  # type: ignore[union-attr]
    assert proven(emitted.model, trained, tmp_path / "rooted.onnx")


def proven(model: onnx.ModelProto, trained: nn.Module, path: Path) -> bool:
    verdict = verify(save(model, path), images(), reference_logits=logits(trained, images()))
    require(verdict)
    return verdict.equal_fraction == 1 and np.isfinite(predict(path, images())).all()
