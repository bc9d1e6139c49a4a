"""The tables of operators: every handler has a record, and no spelling or ONNX operator has two entries."""

from __future__ import annotations

from collections import Counter

from qkd.export import op_tables
from qkd.quantizers.operators import OPERATORS, operator_called, operator_of_class


def test_every_handler_has_a_record() -> None:
    assert set(op_tables.HANDLERS) <= set(OPERATORS)
    assert all(name == each.name for name, each in OPERATORS.items())


def test_no_spelling_has_two_records() -> None:
    found = Counter(spelling for each in OPERATORS.values() for spelling in (*each.spellings, *each.unexported))
    assert not [spelling for spelling, count in found.items() if count > 1]
    for each in OPERATORS.values():
        assert all(operator_of_class(kind) is each for kind in each.modules)
        assert all(operator_called(call) is each for call in (*each.functions, *each.unexported, *each.methods))


def test_no_operator_has_entries_in_two_files() -> None:
    assert sum(len(file.HANDLERS) for file in op_tables.FILES) == len(op_tables.HANDLERS)
    assert sum(len(file.EMULATIONS) for file in op_tables.FILES) == len(op_tables.EMULATIONS)


def test_what_only_moves_or_rounds_is_no_layer() -> None:
    moving = {"QuantizeLinear", "DequantizeLinear", "Clip", "Cast", "Identity"}
    moving |= {"Flatten", "Reshape", "Transpose", "Slice", "Pad"}
    assert {kind for kind in op_tables.EMULATIONS if not op_tables.counts_as_layer(kind)} == moving
    assert op_tables.counts_as_layer("Erf")
