"""How a trained product leaves PyTorch: emitted as ONNX in integers, proven equal to an emulator, timed.

``emit`` and ``emit_float`` write models, ``save`` a file; ``verify`` and ``require`` prove and judge it; ``emulate`` and
``predict`` run it; ``census`` says what onnxruntime makes of it; ``bench`` times it.
"""

from qkd.export.bench import Row, bench
from qkd.export.census import census
from qkd.export.emit import Emitted, emit, emit_float
from qkd.export.emulate import Divergence, emulate, first_divergence
from qkd.export.graph import save
from qkd.export.ptq import SETTINGS, quantize_file
from qkd.export.raw import Layout, RawImages, arranged
from qkd.export.session import predict, suited_to
from qkd.export.verify import Verdict, require, verify

__all__ = [
    "SETTINGS",
    "Divergence",
    "Emitted",
    "Layout",
    "RawImages",
    "Row",
    "Verdict",
    "arranged",
    "bench",
    "census",
    "emit",
    "emit_float",
    "emulate",
    "first_divergence",
    "predict",
    "quantize_file",
    "require",
    "save",
    "suited_to",
    "verify",
]
