"""How integer weights lie in the file: one byte each, or four or two bits each."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from onnx import TensorProto, helper

from qkd.errors import UsageError, nearest
from qkd.export.fold import IntegerWeight, across
from qkd.export.onnx_graph import INT2_OPSET, INT4_OPSET, Graph
from qkd.export.targets import ONNXRUNTIME, Target, require_bits

Storage = Literal["int8", "packed"]


def require_storage(storage: str) -> None:
    if storage not in get_args(Storage):
        known = get_args(Storage)
        raise UsageError(f"storage {storage!r}: choose one of {', '.join(known)}{nearest(storage, known)}")


def store(graph: Graph, weight: IntegerWeight, name: str, storage: Storage, target: Target = ONNXRUNTIME) -> str:
    """The name of an int8 tensor with the layer's codes.

    Packed, the trained codes (before they were multiplied) are an INT2 or INT4 initialiser, then Cast to int8, then Mul
    by the factors: onnxruntime folds both while it loads, so the same integer kernel runs with the same numbers. A
    4-bit DequantizeLinear straight into Conv would stay float (40 times slower in Gemm), a 2-bit one is refused.
    """
    factors = across(weight.factors, weight.codes)
    trained = weight.codes // factors
    kind = _narrowest(trained)
    if storage == "int8" or kind is None:
        return graph.constant(weight.codes, f"{name}.weight")
    require_bits(target, 2 if kind == TensorProto.INT2 else 4, name)
    graph.needs(INT2_OPSET if kind == TensorProto.INT2 else INT4_OPSET)
    packed = graph.tensor(_packed(trained, kind, f"{name}.weight"))
    codes = graph.step("Cast", [packed], to=TensorProto.INT8)
    if (factors == 1).all():
        return codes
    return graph.step("Mul", [codes, graph.constant(factors)])


def _narrowest(codes: np.ndarray) -> int | None:
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if low >= -2 and high <= 1:
        return int(TensorProto.INT2)
    return int(TensorProto.INT4) if low >= -8 and high <= 7 else None


def _packed(codes: np.ndarray, kind: int, name: str) -> TensorProto:
    """An initialiser whose raw bytes hold 2 or 4 codes each, the first in the lowest bits, as the ONNX format has it."""
    bits = 2 if kind == TensorProto.INT2 else 4
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.int16) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    data = np.bitwise_or.reduce(flat << (bits * np.arange(per_byte)), axis=1).astype(np.uint8)
    return helper.make_tensor(name, kind, codes.shape, data.tobytes(), raw=True)
