"""PyTorch's own way: export, `prepare_qat_pt2e` with the quantizer for x86, train, convert, export to ONNX."""

from __future__ import annotations

import torch
from task import main
from torch import Tensor, nn
from torchao.quantization.pt2e import allow_exported_model_train_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


def quantized(network: nn.Module, images: Tensor) -> nn.Module:
    """Observers see the calibration images first."""
    shapes = ({0: torch.export.Dim("batch", min=2, max=4096)},)
    program = torch.export.export(network.train(), (images[:8],), dynamic_shapes=shapes).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    module = allow_exported_model_train_eval(prepare_qat_pt2e(program, quantizer))
    with torch.no_grad():
        for batch in images.split(64):
            module(batch)
    return module


def export(module: nn.Module, image: Tensor, path: str) -> None:
    whole = convert_pt2e(module)
    batch = {0: torch.export.Dim("batch", min=2, max=4096)}
    torch.onnx.export(
        whole, (image.repeat(2, 1, 1, 1),), path, dynamo=True, dynamic_shapes=(batch,), external_data=False
    )


if __name__ == "__main__":
    main(quantized, export)
