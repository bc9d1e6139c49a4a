"""No tool: the float network trained on for as long as the others, to tell what the epochs alone give."""

from __future__ import annotations

import torch
from task import main
from torch import Tensor, nn


def unchanged(network: nn.Module, images: Tensor) -> nn.Module:
    return network


def export(module: nn.Module, image: Tensor, path: str) -> None:
    axes = {"images": {0: "batch"}}
    torch.onnx.export(module, (image,), path, dynamo=False, input_names=["images"], dynamic_axes=axes, opset_version=17)


if __name__ == "__main__":
    main(unchanged, export)
