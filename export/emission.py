"""From a trained model to ONNX: the integer model that is deployed, and the float model it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx
from torch import nn

from qkd.export.converter import Converter
from qkd.export.invariants import require_invariants
from qkd.export.onnx_graph import MINIMUM_ONNXRUNTIME
from qkd.export.op_tables import HANDLERS
from qkd.export.pack import require_storage
from qkd.export.quantizer_map import MappedQuantizer
from qkd.export.resolution import Resolution, resolutions
from qkd.export.targets import ONNXRUNTIME, Storage, Target
from qkd.export.uint8_input import Uint8Input, require_exact_floats
from qkd.quantizers.exact import HEADROOM

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Emitted:
    """An ONNX model, and which of its layers run in integers.

    integer_layers: names of layers that onnxruntime runs in integers. float_layers: (name, reason) of those that it
    cannot, in the order of the graph. minimum_onnxruntime: the oldest version that reads the file. resolution: how fine
    the bias of each integer layer is. coarsened: quantizers that the target has in fewer bits than they were trained in.
    averaged: average pools, and of how many pixels they take the mean. quantizers: by the names of the traced network's
    nodes, where its quantizers are in the file. unrounded: how far rounding its bias may move the logits.
    """

    model: onnx.ModelProto
    integer_layers: tuple[str, ...]
    float_layers: tuple[tuple[str, str], ...]
    minimum_onnxruntime: str
    resolution: tuple[Resolution, ...] = ()
    coarsened: tuple[str, ...] = ()
    averaged: tuple[tuple[str, int], ...] = ()
    quantizers: Mapping[str, MappedQuantizer] = field(default_factory=dict)
    unrounded: float = 0.0


def emit(
    product: nn.Module,
    shape: tuple[int, int, int],
    *,
    storage: Storage = "int8",
    headroom: int = HEADROOM,
    metadata: Mapping[str, str] = NOTHING,
    raw: Uint8Input | None = None,
    target: Target = ONNXRUNTIME,
) -> Emitted:
    """A quantized network, left in evaluation mode, as ONNX with QuantizeLinear/DequantizeLinear around every operation.

    product: the deployed model. shape: (channels, height, width) of the images; the batch axis stays symbolic. storage:
    "packed" keeps weights of up to 4 and 2 bits in as many bits and needs a newer onnxruntime. headroom: the largest
    integer that low-bit weights are multiplied up to (see `fold`). metadata: entries that are written into the model.
    raw: how uint8 images are normalised, for a model that takes such images; None for one that takes normalised floats.
    target: the runtime the model is for. A layer that cannot run in integers is written in float and named with the
    reason. Raises ExportError for an operator without ONNX form, naming it, and for a quantizer without calibration;
    UsageError for a storage or layout that does not exist.
    """
    require_storage(storage)
    settings: dict[str, Any] = {"storage": storage, "headroom": headroom, "uint8_input": raw, "target": target}
    converter = Converter(product, tuple(shape), integer=True, **settings)
    model = _model(converter, tuple(shape), {**metadata, **_input(raw), "target": target.name})
    require_invariants(model, target)
    if raw is not None:
        require_exact_floats(model, raw, tuple(shape))
    return Emitted(
        model,
        tuple(converter.in_integers),
        tuple(converter.kept_float.items()),
        MINIMUM_ONNXRUNTIME[converter.graph.opset],
        resolutions(model, converter.weights),
        tuple(converter.coarsened),
        tuple(converter.averaged.items()),
        converter.quantizers.found,
        converter.quantizers.unrounded,
    )


def emit_float(product: nn.Module, shape: tuple[int, int, int], *, raw: Uint8Input | None = None) -> onnx.ModelProto:
    """The same network in float32, to compare speed with: master weights, batch norm folded into them, no quantizers.

    product, shape and raw: as for `emit`. Raises ExportError for an operator without ONNX form.
    """
    converter = Converter(product, tuple(shape), integer=False, storage="int8", headroom=0, uint8_input=raw)
    return _model(converter, tuple(shape), _input(raw))


def _input(uint8_input: Uint8Input | None) -> Mapping[str, str]:
    """What the metadata holds of the input."""
    if uint8_input is None:
        return {"input": "float32", "layout": "nchw"}
    return {"input": "uint8", "layout": uint8_input.layout}


def _model(converter: Converter, shape: tuple[int, ...], metadata: Mapping[str, str]) -> onnx.ModelProto:
    output = converter.run(HANDLERS)
    classes = next(
        tuple(converter.results[n.args[0]].shape[1:]) for n in converter.module.graph.nodes if n.op == "output"
    )
    found = {
        "float_layers": json.dumps(converter.kept_float),
        "minimum_onnxruntime": MINIMUM_ONNXRUNTIME[converter.graph.opset],
    }
    return converter.graph.model(output.name, shape, classes, {**metadata, **found})
