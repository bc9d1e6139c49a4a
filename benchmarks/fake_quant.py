"""Time of one quantizer, forward and backward, beside ReLU, Brevitas' and torch's own.

    python benchmarks/fake_quant.py [--quick]

Activations are unsigned, one scale per tensor; weights signed, one scale per output channel. Scales learn, in torch's as well.
Ratios are of medians, to an element-wise operation that reads and writes the same memory (ReLU). A second table is of batch
norm in training with the quantizer behind it, channels last, to batch norm with a ReLU.
"""

from __future__ import annotations

import argparse

import torch
from interleaved import Work, arguments, machine, medians, ratios, table, write
from torch import nn

from qkd.engine.device import keep_memory
from qkd.quantizers import Scheme, compile_cores, insert
from qkd.quantizers.brevitas_imports import qnn
from qkd.quantizers.injectors import WeightQuantizer
from qkd.quantizers.layers import relu_quantizer

SHAPES = {"activation 64x16x32x32": (64, 16, 32, 32), "weight 256x256x3x3": (256, 256, 3, 3)}
NORMS = ((128, 16, 32, 32), (128, 64, 8, 8), (128, 1280, 2, 2))
APART, JOINED = "ours compiled, apart", "ours, joined"
COLUMNS = ("relu", "ours", "ours compiled", "Brevitas", "torch")


def both(function: nn.Module, x: torch.Tensor) -> Work:
    """One pass forward and one backward; gradients are dropped."""
    gradient = torch.randn_like(x)
    parameters = [p for p in function.parameters() if p.requires_grad]

    def work() -> None:
        torch.autograd.grad(function(x), [x, *parameters], gradient)

    return work


class Torchs(nn.Module):
    """torch's fake quantization with a learned scale."""

    def __init__(self, scale: torch.Tensor, low: int, high: int) -> None:
        super().__init__()
        self.scale, self.low, self.high = nn.Parameter(scale), low, high
        self.zero = torch.zeros_like(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.scale) > 1:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, self.scale, self.zero, 0, self.low, self.high, 1.0
            )
        return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero, self.low, self.high, 1.0)


class First(nn.Module):
    """A Brevitas weight quantizer, which gives a tensor and its grid."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.quant = layer.weight_quant.tensor_quant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant(x)[0]


def activations(x: torch.Tensor, bits: int) -> dict[str, nn.Module]:
    from brevitas.quant import Uint8ActPerTensorFloat

    found: dict[str, nn.Module] = {"relu": nn.ReLU()}
    for name in ("ours", "ours compiled"):
        layer = relu_quantizer(name, bits, Scheme(bits, bits))
        layer.act_quant.core.fit(x.detach().relu().reshape(1, -1).cpu())
        layer.act_quant.core.compiled = name.endswith("compiled")
        found[name] = layer
    found["Brevitas"] = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=bits, collect_stats_steps=1)
    found["torch"] = Torchs(torch.tensor([4 / (2**bits - 1)]), 0, 2**bits - 1)
    return found


def weights(x: torch.Tensor, bits: int) -> dict[str, nn.Module]:
    from brevitas.quant import Int8WeightPerChannelFloat

    def layer(quant: type, **options: object) -> nn.Module:
        made = qnn.QuantConv2d(*x.shape[1::-1], 3, weight_quant=quant, weight_bit_width=bits, **options)
        made.weight.data.copy_(x)
        return made

    found: dict[str, nn.Module] = {"relu": nn.ReLU()}
    for name in ("ours", "ours compiled"):
        core = layer(WeightQuantizer).weight_quant.tensor_quant
        core.fit(x.detach().flatten(1).cpu())
        core.compiled = name.endswith("compiled")
        found[name] = core
    found = {name: (_Value(core) if name.startswith("ours") else core) for name, core in found.items()}
    found["Brevitas"] = First(layer(Int8WeightPerChannelFloat))
    top = 2 ** (bits - 1) - 1
    found["torch"] = Torchs(x.detach().flatten(1).abs().amax(1).cpu() / top, -top, top)
    return found


def behind_norms(x: torch.Tensor, bits: int) -> dict[str, nn.Module]:
    """Batch norm in training and what stands behind it."""
    found: dict[str, nn.Module] = {"relu": nn.Sequential(nn.BatchNorm2d(x.shape[1]), nn.ReLU())}
    for name in ("ours", APART, JOINED):
        graph = insert(
            nn.Sequential(nn.Conv2d(x.shape[1], x.shape[1], 1), nn.BatchNorm2d(x.shape[1]), nn.ReLU()),
            Scheme(bits, bits),
        )
        compile_cores(graph, name != "ours")
        norm, quantizer = graph.get_submodule("1"), graph.get_submodule("2")
        quantizer.act_quant.core.fit(torch.randn(1, 10_000).relu())
        if name == APART:
            norm.fused = None
        found[name] = nn.Sequential(norm, quantizer).train()
    return found


class _Value(nn.Module):
    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.core(x)[0]


def norm_table(options: argparse.Namespace, rounds: int, figures: dict[str, object]) -> None:
    """Batch norm with what stands behind it, size by size."""
    rows: list[list[object]] = []
    for size in NORMS:
        torch.manual_seed(0)
        x = torch.randn(size, device=options.device).to(memory_format=torch.channels_last).requires_grad_()
        works = {n: both(f.to(options.device), x) for n, f in behind_norms(x, options.bits[0]).items()}
        times = medians(works, rounds=rounds, warm=3, device=options.device)
        found = ratios(times, "relu")
        figures[f"batch norm {size}"] = {"milliseconds": times, "ratios": found}
        rows.append(["x".join(map(str, size)), times["relu"], *(found[name] for name in ("ours", APART, JOINED))])
    print(table(["batch norm and", "relu ms", "ours", APART, JOINED], rows))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as training does
    rounds = 7 if options.quick else 3 * options.rounds
    figures: dict[str, object] = {"rounds": rounds}
    rows: list[list[object]] = []
    for what, shape in SHAPES.items():
        for bits in options.bits:
            torch.manual_seed(0)
            x = torch.randn(shape, device=options.device, requires_grad=True)
            made = activations(x, bits) if what.startswith("activation") else weights(x, bits)
            works = {name: both(function.to(options.device), x) for name, function in made.items()}
            times = medians(works, rounds=rounds, warm=3, device=options.device)
            found = ratios(times, "relu")
            figures[f"{what}, {bits} bits"] = {"milliseconds": times, "ratios": found}
            rows.append([f"{what}, {bits} bits", times["relu"], *(found[name] for name in COLUMNS)])
    print(machine(options.device))
    print(table(["", "relu ms", *COLUMNS], rows))
    norm_table(options, rounds, figures)
    write(options.json, figures, options.device)


if __name__ == "__main__":
    main()
