"""AIMET on the float ONNX file: batch norm folded, its default configuration (per channel), weights written as integers."""

from __future__ import annotations

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from task import main_of_file


def quantized(floating: str, images: np.ndarray, path: str) -> None:
    model = onnx.load(floating)
    name = model.graph.input[0].name
    fold_all_batch_norms_to_weight(model)
    sim = aimet_onnx.QuantizationSimModel(model, dummy_input={name: images[:1]})
    sim.compute_encodings([{name: image[None]} for image in images])
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), path)


if __name__ == "__main__":
    main_of_file(quantized)
