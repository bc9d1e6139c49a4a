"""How a trained product leaves PyTorch: emitted as ONNX in integers, proven equal to an emulator, timed.

``emit`` and ``emit_float`` write models, ``save`` a file; ``likeness`` holds it against the network it was made from,
``verify`` and ``require`` prove what onnxruntime makes of it; ``emulate`` and ``predict`` run it; ``census`` says what
onnxruntime makes of it; ``bench`` times it.
"""

from qkd.export.bench import Row, bench
from qkd.export.emit import Emitted, emit, emit_float
from qkd.export.emulator import Divergence, emulate, first_divergence
from qkd.export.onnx_graph import INPUT, save
from qkd.export.op_counts import census
from qkd.export.openvino import OpenVino, require_openvino
from qkd.export.parity import Likeness, float_likeness, likeness, require_likeness
from qkd.export.ptq import SETTINGS, quantize_file
from qkd.export.reference_run import Trial, attempt, literal_logits, require_agreement
from qkd.export.session import metadata as told
from qkd.export.session import predict, suited_to
from qkd.export.targets import ONNXRUNTIME, TARGETS, Target, target_of
from qkd.export.uint8_input import Layout, RawImages, arranged
from qkd.export.verify import Verdict, require, verify

__all__ = [
    "INPUT",
    "ONNXRUNTIME",
    "SETTINGS",
    "TARGETS",
    "Divergence",
    "Emitted",
    "Layout",
    "Likeness",
    "OpenVino",
    "RawImages",
    "Row",
    "Target",
    "Trial",
    "Verdict",
    "arranged",
    "attempt",
    "bench",
    "census",
    "emit",
    "emit_float",
    "emulate",
    "first_divergence",
    "float_likeness",
    "likeness",
    "literal_logits",
    "predict",
    "quantize_file",
    "require",
    "require_agreement",
    "require_likeness",
    "require_openvino",
    "save",
    "suited_to",
    "target_of",
    "told",
    "verify",
]
