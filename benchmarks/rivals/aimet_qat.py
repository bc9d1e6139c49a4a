"""AIMET in PyTorch: modules for additions, batch norm folded, its default configuration, weights as integers."""

from __future__ import annotations

import aimet_torch
import torch
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.model_preparer import prepare_model
from task import main
from torch import Tensor, nn


def quantized(network: nn.Module, images: Tensor) -> nn.Module:
    prepared = prepare_model(network)
    fold_all_batch_norms(prepared, tuple(images[:1].shape))
    sim = aimet_torch.QuantizationSimModel(prepared, images[:1], default_output_bw=8, default_param_bw=8)
    with torch.no_grad():
        sim.compute_encodings(lambda module: [module(batch) for batch in images.split(64)])
    return sim.model


def export(module: nn.Module, image: Tensor, path: str) -> None:
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": {"images": {0: "batch"}}}
    aimet_torch.onnx.export(module, image, path, prequantize_constants=True, dynamo=False, opset_version=21, **names)


if __name__ == "__main__":
    main(quantized, export)
