"""How a trained product leaves PyTorch: emitted as ONNX in integers, proven equal to an emulator, timed.

``emit`` and ``emit_float`` write models, ``save`` a file; ``torch_parity`` holds it against the network it was made from,
``verify`` and ``require`` prove what onnxruntime makes of it; ``emulate`` and ``predict`` run it; ``count_operators`` says what
onnxruntime makes of it; ``bench`` times it.
"""

from qkd.export.bench import Row, bench
from qkd.export.emit import Emitted, emit, emit_float
from qkd.export.emulator import Divergence, emulate, first_divergence
from qkd.export.onnx_graph import INPUT, save
from qkd.export.op_counts import count_operators
from qkd.export.openvino import OpenVino, require_openvino
from qkd.export.parity import Parity, float_parity, require_parity, torch_parity
from qkd.export.ptq import SETTINGS, quantize_file
from qkd.export.reference_run import ReferenceRun, reference_logits, require_agreement, run_reference
from qkd.export.session import matching_input_of, predict, read_metadata
from qkd.export.targets import ONNXRUNTIME, TARGETS, Target, target_of
from qkd.export.uint8_input import Layout, Uint8Input, in_layout
from qkd.export.verify import Verdict, require, verify

__all__ = [
    "INPUT",
    "ONNXRUNTIME",
    "SETTINGS",
    "TARGETS",
    "Divergence",
    "Emitted",
    "Layout",
    "OpenVino",
    "Parity",
    "ReferenceRun",
    "Row",
    "Target",
    "Uint8Input",
    "Verdict",
    "bench",
    "count_operators",
    "emit",
    "emit_float",
    "emulate",
    "first_divergence",
    "float_parity",
    "in_layout",
    "matching_input_of",
    "predict",
    "quantize_file",
    "read_metadata",
    "reference_logits",
    "require",
    "require_agreement",
    "require_openvino",
    "require_parity",
    "run_reference",
    "save",
    "target_of",
    "torch_parity",
    "verify",
]
