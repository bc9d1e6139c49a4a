"""The export of a trained model: written as ONNX in integers, proven equal to an emulator, timed.

``emit`` and ``emit_float`` make models, ``save`` writes a file; ``torch_parity`` compares it with the network it was made
from, ``verify`` and ``require`` prove what onnxruntime computes with it; ``emulate`` and ``predict`` run it;
``count_operators`` counts the operators that onnxruntime makes of it; ``bench`` times it.

The names below are imported when they are first used, so that `qkd.export.targets` needs neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkd.export.benchmark import bench as bench
    from qkd.export.contender import Contender as Contender
    from qkd.export.contender import Images as Images
    from qkd.export.contender import contenders as contenders
    from qkd.export.emission import Emitted as Emitted
    from qkd.export.emission import emit as emit
    from qkd.export.emission import emit_float as emit_float
    from qkd.export.emulator import Divergence as Divergence
    from qkd.export.emulator import emulate as emulate
    from qkd.export.emulator import first_divergence as first_divergence
    from qkd.export.onnx_graph import INPUT as INPUT
    from qkd.export.onnx_graph import save as save
    from qkd.export.op_counts import count_operators as count_operators
    from qkd.export.openvino import OpenVino as OpenVino
    from qkd.export.openvino import load_openvino as load_openvino
    from qkd.export.parity import Parity as Parity
    from qkd.export.parity import float_parity as float_parity
    from qkd.export.parity import require_parity as require_parity
    from qkd.export.parity import torch_parity as torch_parity
    from qkd.export.ptq import SETTINGS as SETTINGS
    from qkd.export.ptq import quantize_file as quantize_file
    from qkd.export.reference_run import ReferenceRun as ReferenceRun
    from qkd.export.reference_run import reference_logits as reference_logits
    from qkd.export.reference_run import require_agreement as require_agreement
    from qkd.export.reference_run import run_reference as run_reference
    from qkd.export.session import matching_input_of as matching_input_of
    from qkd.export.session import predict as predict
    from qkd.export.session import read_metadata as read_metadata
    from qkd.export.targets import ONNXRUNTIME as ONNXRUNTIME
    from qkd.export.targets import TARGETS as TARGETS
    from qkd.export.targets import Layout as Layout
    from qkd.export.targets import Runtime as Runtime
    from qkd.export.targets import Target as Target
    from qkd.export.targets import target_of as target_of
    from qkd.export.uint8_input import Uint8Input as Uint8Input
    from qkd.export.uint8_input import in_layout as in_layout
    from qkd.export.verification import Verdict as Verdict
    from qkd.export.verification import require as require
    from qkd.export.verification import verify as verify

_MODULES = {
    "Contender": "contender",
    "Divergence": "emulator",
    "Emitted": "emission",
    "INPUT": "onnx_graph",
    "Images": "contender",
    "Layout": "targets",
    "ONNXRUNTIME": "targets",
    "OpenVino": "openvino",
    "Parity": "parity",
    "ReferenceRun": "reference_run",
    "Runtime": "targets",
    "SETTINGS": "ptq",
    "TARGETS": "targets",
    "Target": "targets",
    "Uint8Input": "uint8_input",
    "Verdict": "verification",
    "bench": "benchmark",
    "contenders": "contender",
    "count_operators": "op_counts",
    "emit": "emission",
    "emit_float": "emission",
    "emulate": "emulator",
    "first_divergence": "emulator",
    "float_parity": "parity",
    "in_layout": "uint8_input",
    "load_openvino": "openvino",
    "matching_input_of": "session",
    "predict": "session",
    "quantize_file": "ptq",
    "read_metadata": "session",
    "reference_logits": "reference_run",
    "require": "verification",
    "require_agreement": "reference_run",
    "require_parity": "parity",
    "run_reference": "reference_run",
    "save": "onnx_graph",
    "target_of": "targets",
    "torch_parity": "parity",
    "verify": "verification",
}
"""The module of each public name. No module has the name of one: it would hide it once it is imported."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
