"""How integer weights are stored in the file: one byte each, or four or two bits each."""

from __future__ import annotations

from typing import get_args

import numpy as np
from onnx import TensorProto, helper

from qkd.errors import UsageError, nearest
from qkd.export.fold import IntegerWeight, across
from qkd.export.onnx_graph import INT2_OPSET, INT4_OPSET, Graph
from qkd.export.targets import ONNXRUNTIME, Storage, Target, require_bits


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

    Packed, the trained integers (before they were multiplied) are an INT2 or INT4 initialiser, then Cast to int8, then
    Mul by the factors: onnxruntime folds both while it loads, so the same integer kernel runs with the same numbers. A
    4-bit DequantizeLinear straight into Conv would stay float (40 times slower in Gemm), a 2-bit one is refused. Raises
    ExportError for fewer bits than the target reads.
    """
    factors = across(weight.factors, weight.integers)
    trained = weight.integers // factors
    kind = _narrowest(trained)
    if storage == "int8" or kind is None:
        return graph.constant(weight.integers, f"{name}.weight")
    require_bits(target, 2 if kind == TensorProto.INT2 else 4, name)
    graph.needs(INT2_OPSET if kind == TensorProto.INT2 else INT4_OPSET)
    packed = graph.tensor(_packed(trained, kind, f"{name}.weight"))
    integers = graph.unnamed("Cast", [packed], to=TensorProto.INT8)
    if (factors == 1).all():
        return integers
    return graph.unnamed("Mul", [integers, graph.constant(factors)])


def _narrowest(integers: np.ndarray) -> int | None:
    """The packed ONNX type that holds the integers; None where they need more than 4 bits."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    if low >= -2 and high <= 1:
        return int(TensorProto.INT2)
    return int(TensorProto.INT4) if low >= -8 and high <= 7 else None


def _packed(integers: np.ndarray, kind: int, name: str) -> TensorProto:
    """An initialiser whose raw bytes hold 2 or 4 integers each, the first in the lowest bits, as the ONNX format defines."""
    bits = 2 if kind == TensorProto.INT2 else 4
    per_byte = 8 // bits
    flat = integers.reshape(-1).astype(np.int16) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    data = np.bitwise_or.reduce(flat << (bits * np.arange(per_byte)), axis=1).astype(np.uint8)
    return helper.make_tensor(name, kind, integers.shape, data.tobytes(), raw=True)
