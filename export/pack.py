"""How integer weights are stored in the file: one byte each, or four or two bits each."""

from __future__ import annotations

from typing import get_args

import numpy as np
from onnx import TensorProto, helper

from qkd.errors import UsageError, nearest
from qkd.export.codes import Codes, codes
from qkd.export.fold import IntegerWeight, across
from qkd.export.onnx_graph import INT2_OPSET, INT4_OPSET, Graph
from qkd.export.targets import ONNXRUNTIME, Storage, Target, require_bits

PACKED_BITS = (2, 4)
"""Those of the packed ONNX types."""


def require_storage(storage: str) -> None:
    """Raises UsageError for a storage that does not exist."""
    possible = get_args(Storage)
    if storage not in possible:
        raise UsageError(
            f"storage {storage!r}: choose one of {', '.join(possible)}{nearest(storage, possible)}",
            key="export.unknown-storage",
        )


def store(graph: Graph, weight: IntegerWeight, name: str, storage: Storage, target: Target = ONNXRUNTIME) -> str:
    """Adds a layer's integer weights to the graph and returns the name of the int8 tensor (output channels first).

    Packed, the codes of the trained integers (before they were multiplied) are an INT2 or INT4 initialiser, then Cast to int8,
    then Mul by the factors, and for the odd integers of a mid-rise grid Add: onnxruntime folds all of them while it loads,
    so the same integer kernel runs with the same numbers. A 4-bit DequantizeLinear straight into Conv would stay float (40
    times slower in Gemm), a 2-bit one is refused. Raises ExportError for fewer bits than the target reads.
    """
    found = None if storage == "int8" else _narrowest(weight, target)
    if found is None:
        return graph.constant(weight.integers, f"{name}.weight")
    bits, (numbers, times, plus) = found
    require_bits(target, bits, name)
    graph.needs(INT2_OPSET if bits == 2 else INT4_OPSET)
    packed = graph.tensor(_packed(numbers, bits, f"{name}.weight"))
    integers = graph.unnamed("Cast", [packed], to=TensorProto.INT8)
    for operator, operand, neutral in (("Mul", times, 1), ("Add", plus, 0)):
        if (operand != neutral).any():
            constant = graph.constant(across(operand.astype(np.int8), numbers))
            integers = graph.unnamed(operator, [integers, constant])
    return integers


def _narrowest(weight: IntegerWeight, target: Target) -> tuple[int, Codes] | None:
    """The bits of the packed ONNX type that holds the integers, and their codes; None where they need more than 4 bits.

    In 4 bits an Add is written for onnxruntime alone, where it was tried; other targets keep such integers in bytes.
    """
    trained = weight.integers // across(weight.factors, weight.integers)
    for bits in PACKED_BITS:
        found = codes(trained, weight.factors, bits)
        if found is not None and (bits == 2 or target is ONNXRUNTIME or not found.plus.any()):
            return bits, found
    return None


def _packed(integers: np.ndarray, bits: int, name: str) -> TensorProto:
    """An initialiser whose raw bytes hold 2 or 4 integers each, the first in the lowest bits, as the ONNX format defines."""
    kind = TensorProto.INT2 if bits == 2 else TensorProto.INT4
    per_byte = 8 // bits
    flat = integers.reshape(-1).astype(np.int16) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    data = np.bitwise_or.reduce(flat << (bits * np.arange(per_byte)), axis=1).astype(np.uint8)
    return helper.make_tensor(name, kind, integers.shape, data.tobytes(), raw=True)
