"""Brevitas alone, as its manual has it: its own quantization of the float network, stock layers, its own export (QCDQ)."""

from __future__ import annotations

import torch
from brevitas.export import export_onnx_qcdq
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from task import main
from torch import Tensor, nn

OLDER = {
    "dynamo": False,
    "input_names": ["images"],
    "output_names": ["logits"],
    "dynamic_axes": {"images": {0: "batch"}},
}


def quantized(network: nn.Module, images: Tensor) -> nn.Module:
    """Batch norm is merged before; activation ranges come from the calibration images and are learned from then on."""
    module = quantize(preprocess_for_quantize(network))
    with torch.no_grad(), calibration_mode(module):
        for batch in images.split(64):
            module(batch)
    return module


def export(module: nn.Module, image: Tensor, path: str) -> None:
    """Its default exporter refuses the biases that its default quantization makes, so the older one (needs onnxoptimizer)."""
    export_onnx_qcdq(module, args=image, export_path=path, **OLDER)


if __name__ == "__main__":
    main(quantized, export)
