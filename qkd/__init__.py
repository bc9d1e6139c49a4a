"""qkd: low-bit teachers and a low-bit student learn together; the student leaves as a proven integer ONNX file."""

__version__ = "0.1.0"
