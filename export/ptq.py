"""Post-training quantization: onnxruntime's own static quantization of a float file, to compare students with."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from qkd.errors import ExportError
from qkd.export.onnx_graph import first_line, load
from qkd.storage.atomic import replaced_on_success

Setting = Literal["u8s8", "default"]
SETTINGS: dict[Setting, dict[str, Any]] = {
    "u8s8": {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "default": {},
}
"""u8s8: uint8 activations and int8 weights with a scale for each channel, its best setting. default: no settings."""
BATCH = 16


@final
class Reader(CalibrationDataReader):
    """Calibration images in batches, each once."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.array_split(images, -(-len(images) // BATCH)))
        self.name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def quantize_file(source: str | Path, output: str | Path, images: np.ndarray, setting: Setting) -> Path:
    """Writes the static quantization of a float file, calibrated on float32 images (N, C, H, W), and returns its path.

    Raises ExportError where onnxruntime cannot.
    """
    name = load(source).graph.input[0].name
    output = Path(output)
    try:
        with tempfile.TemporaryDirectory(prefix="qkd-") as folder, _quiet(), replaced_on_success(output) as unfinished:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            reader = Reader(name, np.ascontiguousarray(images, np.float32))
            quantize_static(str(prepared), str(unfinished), reader, **SETTINGS[setting])
    except Exception as error:  # its exceptions share no base class
        raise ExportError(
            f"{source}: onnxruntime's own quantization failed: {first_line(error)}", key="quantize.failed"
        ) from error
    return output


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the advice that onnxruntime prints and logs meanwhile."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
