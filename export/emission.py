"""From a trained product to ONNX: the integer file that is deployed, and the float file it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx
from torch import nn

from qkd.export.converter import Converter, Handler
from qkd.export.invariants import require_invariants
from qkd.export.onnx_graph import MINIMUM_ONNXRUNTIME
from qkd.export.ops_elementwise import ARITHMETIC
from qkd.export.ops_layer_norm import NORMS
from qkd.export.ops_layers import LAYERS
from qkd.export.ops_pool import POOLS
from qkd.export.ops_shape import VIEWS
from qkd.export.pack import Storage, require_storage
from qkd.export.quantizer_map import MappedQuantizer
from qkd.export.resolution import Resolution, resolutions
from qkd.export.targets import ONNXRUNTIME, Target
from qkd.export.uint8_input import Uint8Input, require_exact_floats

HANDLERS: Mapping[Any, Handler] = MappingProxyType({**LAYERS, **NORMS, **POOLS, **ARITHMETIC, **VIEWS})
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Emitted:
    """An ONNX model and what each of its layers runs in.

    integer_layers: names of layers that onnxruntime runs in integers. float_layers: (name, reason) of those that it
    cannot, in the order of the graph. minimum_onnxruntime: the oldest version that reads the file. resolution: how finely
    each integer layer counts. coarsened: tensors that the target takes in fewer bits than they were trained in. averaged:
    average pools, and of how many pixels they take the mean. roundings: by the names of the traced network's nodes, where
    its quantizers are in the file; unrounded: how far rounding its bias may move the logits.
    """

    model: onnx.ModelProto
    integer_layers: tuple[str, ...]
    float_layers: tuple[tuple[str, str], ...]
    minimum_onnxruntime: str
    resolution: tuple[Resolution, ...] = ()
    coarsened: tuple[str, ...] = ()
    averaged: tuple[tuple[str, int], ...] = ()
    roundings: Mapping[str, MappedQuantizer] = field(default_factory=dict)
    unrounded: float = 0.0


def emit(
    product: nn.Module,
    shape: tuple[int, int, int],
    *,
    storage: Storage = "int8",
    headroom: int = 63,
    metadata: Mapping[str, str] = NOTHING,
    raw: Uint8Input | None = None,
    target: Target = ONNXRUNTIME,
) -> Emitted:
    """The product, left in evaluation mode, as ONNX with QuantizeLinear/DequantizeLinear around every operation.

    ``shape`` is (channels, height, width) of the images; the batch axis stays symbolic. ``storage`` "packed" keeps
    weights of up to 4 and 2 bits in as many bits and asks for a newer onnxruntime. ``headroom`` is what low-bit weights
    are raised to (see ``fold``). With ``raw`` the file takes uint8 images and normalises them itself. ``target`` is the
    runtime it is for. A layer that cannot run in integers is emitted in float and named with the reason.
    Raises ExportError for an operation without ONNX form, naming it, and for a quantizer without calibration.
    """
    require_storage(storage)
    walk = Converter(product, tuple(shape), integer=True, storage=storage, headroom=headroom, raw=raw, target=target)
    model = _model(walk, tuple(shape), {**metadata, **_input(raw), "target": target.name})
    require_invariants(model, target)
    if raw is not None:
        require_exact_floats(model, raw, tuple(shape))
    return Emitted(
        model,
        tuple(walk.in_integers),
        tuple(walk.kept_float.items()),
        MINIMUM_ONNXRUNTIME[walk.graph.opset],
        resolutions(model, walk.weights),
        tuple(walk.coarsened),
        tuple(walk.averaged.items()),
        walk.roundings.found,
        walk.roundings.unfollowed,
    )


def emit_float(product: nn.Module, shape: tuple[int, int, int], *, raw: Uint8Input | None = None) -> onnx.ModelProto:
    """The same network in float32: master weights, batch norm folded into them, no quantizers. What speed is compared with."""
    walk = Converter(product, tuple(shape), integer=False, storage="int8", headroom=0, raw=raw)
    return _model(walk, tuple(shape), _input(raw))


def _input(raw: Uint8Input | None) -> Mapping[str, str]:
    return {"input": "float32", "layout": "nchw"} if raw is None else {"input": "uint8", "layout": raw.layout}


def _model(walk: Converter, shape: tuple[int, ...], metadata: Mapping[str, str]) -> onnx.ModelProto:
    output = walk.run(HANDLERS)
    classes = next(tuple(walk.results[n.args[0]].shape[1:]) for n in walk.module.graph.nodes if n.op == "output")
    reasons = json.dumps(walk.kept_float)
    told = {**metadata, "float_layers": reasons, "minimum_onnxruntime": MINIMUM_ONNXRUNTIME[walk.graph.opset]}
    return walk.graph.model(output.name, shape, classes, told)
