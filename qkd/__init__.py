"""qkd: low-bit teachers and a low-bit student learn together; the student leaves as a proven integer ONNX file."""

import os

__version__ = "0.1.0"

# onnxruntime 1.29 and later report their use to Microsoft, from a thread of their own; decided when they are first loaded.
# qkd uses no network unless a recipe asks for it; who wants those reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
