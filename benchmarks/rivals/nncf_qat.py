"""NNCF in PyTorch: quantize, train, strip to PyTorch's own operators, export (without strip onnxruntime refuses the file)."""

from __future__ import annotations

import nncf
import torch
from task import main
from torch import Tensor, nn


def quantized(network: nn.Module, images: Tensor) -> nn.Module:
    dataset = nncf.Dataset([image[None] for image in images])
    return nncf.quantize(network, dataset, subset_size=len(images))


def export(module: nn.Module, image: Tensor, path: str) -> None:
    plain = nncf.strip(module, strip_format=nncf.StripFormat.NATIVE, example_input=image)
    axes = {"images": {0: "batch"}}
    torch.onnx.export(plain, (image,), path, dynamo=False, input_names=["images"], dynamic_axes=axes, opset_version=17)


if __name__ == "__main__":
    main(quantized, export)
