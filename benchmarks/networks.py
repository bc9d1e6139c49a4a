"""Which networks become integer end to end: insert, train five steps, export, prove. Writes docs/networks.md.

    python benchmarks/networks.py [resnet18 timm:resnet18 ...] [--size 64] [--out docs/networks.md]

A name without a prefix is torchvision's.
Weights are random: the table is about form and equality, not about accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qkd.assembly.export_preview import grouped_by_reason, stays_float
from qkd.errors import QkdError
from qkd.export import emit, emulate, predict
from qkd.export.op_counts import layers_of
from qkd.export.session import optimized
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert

NAMES = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "vgg11_bn", "alexnet", "squeezenet1_1"),
    *("densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny"),
    *("timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100", "timm:mobilenetv3_small_100", "timm:vgg11_bn"),
    *("timm:densenet121", "timm:regnety_004", "timm:efficientnet_b0", "timm:convnext_tiny", "timm:convnext_atto"),
)
SIZES = {"vgg11_bn": 224, "alexnet": 224, "timm:vgg11_bn": 224}
"""Where another size is needed: these pool to a fixed size, which the integer pool takes only from a multiple of it."""
CLASSES = 10
HEAD = (
    "network",
    "pixels",
    "inserts",
    "trains 5 steps",
    "exports",
    "integer layers",
    "equal to emulator",
    "stays float",
)


class Row(NamedTuple):
    """One network; a field that could not be reached is empty."""

    name: str
    pixels: str
    inserts: str = "no"
    trains: str = ""
    exports: str = ""
    integer: str = ""
    equal: str = ""
    floating: str = ""


def look_at(name: str, scheme: Scheme, size: int) -> Row:
    size = SIZES.get(name, size)
    row = Row(name, str(size))
    images = torch.randn(2 if size > 128 else 4, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    try:
        network = build(name if ":" in name else f"torchvision:{name}", classes=CLASSES)
        module = insert(network, scheme)
        calibrate(module, [images])
        row = row._replace(inserts="yes")
        foreseen = stays_float(module, (3, size, size))
        row = row._replace(trains=_train(module, images))
        emitted = emit(module.eval(), (3, size, size))
        assert list(emitted.float_layers) == foreseen, "what was foreseen is not what came"
        row = row._replace(exports="yes", floating="; ".join(grouped_by_reason(foreseen)).replace("stays float: ", ""))
        weighted = {node.name for node in emitted.model.graph.node if node.op_type in ("Conv", "Gemm")}
        layers = layers_of(emitted.model, optimized(emitted.model))
        integer = len(weighted & set(layers.integer))
        row = row._replace(integer=f"{integer} of {len(weighted)}")
        found, expected = predict(emitted.model, images.numpy()), emulate(emitted.model, images.numpy())
        same = float(np.mean(found == expected))
        return row._replace(equal="yes" if same == 1 else f"{100 * same:.1f} %")
    except QkdError as error:
        return row._replace(exports="no", floating=str(error).partition("; possible are")[0])


def _train(module: nn.Module, images: torch.Tensor) -> str:
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9)
    module.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), torch.arange(len(images)) % CLASSES)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
    return "yes" if loss.isfinite() else "loss is not finite"


def page(rows: list[Row], command: str, scheme: Scheme) -> str:
    lines = ["# Networks", "", f"Torchvision's and timm's networks at {scheme}, as `{command}` found them.", ""]
    for title, timms in (("torchvision", False), ("timm", True)):
        chosen = [row for row in rows if row.name.startswith("timm:") is timms]
        if chosen:
            lines += [f"## {title}", "", f"| {' | '.join(HEAD)} |", f"| --- |{' --- |' * (len(HEAD) - 1)}"]
            lines += [*(f"| {' | '.join(row)} |" for row in chosen), ""]
    lines += [
        "Integer layers: convolutions and linear layers that onnxruntime runs as integer kernels, of all there are."
    ]
    lines += ["Equal: logits of the file in onnxruntime that are those of the integer emulator to the last bit."]
    lines += ["What stays float is known before training: `qkd check` names it.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    scheme = Scheme.parse(options.scheme, calibration="minmax")
    rows = []
    for name in options.names:
        start = time.perf_counter()
        rows.append(look_at(name, scheme, options.size))
        print(*rows[-1], f"{time.perf_counter() - start:.0f} s", sep=" | ", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python benchmarks/networks.py", *sys.argv[1:]])
    options.out.write_text(page(rows, command, scheme))


if __name__ == "__main__":
    main()
