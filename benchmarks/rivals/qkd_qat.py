"""qkd's own quantizers: a step of QAT, with PyTorch's operators alone and with the kernels in C that training uses."""

from __future__ import annotations

import copy

from task import cost, job, network_of, noise, step_of
from torch import Tensor, nn

from qkd.quantizers import Scheme, calibrate, compile_cores, insert


def quantized(network: nn.Module, images: Tensor, *, compiled: bool) -> nn.Module:
    module = insert(network, Scheme.parse("w8a8"))
    calibrate(module, [images])
    if compiled:
        compile_cores(module)
    return module


if __name__ == "__main__":
    with job() as asked:
        network, images = network_of(asked.network), noise(asked.batch)
        works = {"float": step_of(copy.deepcopy(network), images)}
        works["qkd, eager"] = step_of(quantized(network, images, compiled=False), images)
        works["qkd, C kernels"] = step_of(quantized(network, images, compiled=True), images)
        cost(asked, works, "float")
