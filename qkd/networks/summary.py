"""The layers of a network as a table: shapes, parameters, multiplications, and where it can be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def layer_table(name: str, *, size: int, channels: int, classes: int) -> str:
    """Layers in the order of the graph: output shape, parameters, MACs of one image, and whether one can cut there. -> text"""
    import torch

    from qkd.networks.build import build
    from qkd.networks.tracing import record_shapes, trace

    module = trace(build(name, classes=classes, channels=channels))
    record_shapes(module, torch.zeros(2, channels, size, size))
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "MACs", "cut")]
    total = [0, 0]
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        layer = module.get_submodule(str(node.target))
        meta = node.meta.get("tensor_meta")
        shape = "x".join(map(str, meta.shape[1:])) if meta is not None and hasattr(meta, "shape") else ""
        count = sum(p.numel() for p in layer.parameters())
        work = _macs(layer, meta.shape) if shape else 0
        total = [total[0] + count, total[1] + work]
        where = "yes" if calls.count(str(node.target)) == 1 else "no: called more than once"
        numbers = (f"{number:,}" if number else "" for number in (count, work))
        rows.append((str(node.target), type(layer).__name__, shape, *numbers, where))
    rows.append(("all", "", "", *(f"{number:,}" for number in total), ""))
    blocks = sorted({path for target in calls for path in _parents(target)})
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"blocks one can cut behind as well: {', '.join(blocks)}"])


def _macs(layer: Any, shape: Sequence[int]) -> int:
    """Multiplications of one image: every weight at every place its output channel is computed at."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() < 2:
        return 0
    places = math.prod(shape[1:]) // len(weight)
    return int(weight.numel() * places)


def _parents(target: str) -> list[str]:
    words = target.split(".")
    return [".".join(words[:i]) for i in range(1, len(words))]
