"""NVIDIA's ModelOpt: its INT8 configuration for convolutional networks, ranges from calibration and fixed while training."""

from __future__ import annotations

import modelopt.torch.quantization as mtq
import torch
from task import main
from torch import Tensor, nn


def quantized(network: nn.Module, images: Tensor) -> nn.Module:
    return mtq.quantize(network, mtq.INT8_DEFAULT_CFG, lambda module: [module(batch) for batch in images.split(64)])


def export(module: nn.Module, image: Tensor, path: str) -> None:
    axes = {"images": {0: "batch"}}
    torch.onnx.export(module, (image,), path, dynamo=False, input_names=["images"], dynamic_axes=axes, opset_version=17)


if __name__ == "__main__":
    main(quantized, export)
