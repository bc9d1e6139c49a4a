"""A table of the layers of a network: shapes, parameters, multiply-accumulates, and where it can be cut into stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

HEADER = ("layer", "kind", "output", "parameters", "MACs", "cut")


class LayerRow(NamedTuple):
    """One call of a layer: ``shape`` is its output's, without the batch; ``macs`` are those of one image."""

    path: str
    kind: str
    shape: str
    parameters: int
    macs: int
    cut: str

    def cells(self) -> tuple[str, ...]:
        """The texts of a row; a number that is 0 is left empty."""
        numbers = (f"{number:,}" if number else "" for number in (self.parameters, self.macs))
        return self.path, self.kind, self.shape, *numbers, self.cut


def layer_table(name: str, *, size: int, channels: int, classes: int) -> str:
    """The layers of a network in the order of its graph, as text: one row each, totals, and the blocks one can cut behind.

    ``name`` is one that `qkd.networks.build.build` takes; shapes are for images (channels, size, size). Raises NetworkError.
    """
    import torch

    from qkd.networks.build import build
    from qkd.networks.tracing import record_shapes, trace

    module = trace(build(name, classes=classes, channels=channels))
    record_shapes(module, torch.zeros(2, channels, size, size))
    rows = _layer_rows(module)
    blocks = sorted({path for row in rows for path in _parents(row.path)})
    totals = (f"{sum(numbers):,}" for numbers in ([r.parameters for r in rows], [r.macs for r in rows]))
    cells = [HEADER, *(row.cells() for row in rows), ("all", "", "", *totals, "")]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, "", f"blocks one can cut behind as well: {', '.join(blocks)}"])


def _layer_rows(module: Any) -> list[LayerRow]:
    """A row for each layer call of a traced network on whose nodes shapes are recorded."""
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    paths = [str(node.target) for node in calls]
    rows = []
    for node, path in zip(calls, paths, strict=True):
        layer = module.get_submodule(path)
        output = node.meta.get("tensor_meta")
        shape = "x".join(map(str, output.shape[1:])) if output is not None and hasattr(output, "shape") else ""
        parameters = sum(p.numel() for p in layer.parameters())
        cut = "yes" if paths.count(path) == 1 else "no: called more than once"
        rows.append(
            LayerRow(path, type(layer).__name__, shape, parameters, _macs(layer, output.shape) if shape else 0, cut)
        )
    return rows


def _macs(layer: Any, shape: Sequence[int]) -> int:
    """Multiply-accumulates for one image: each weight once for every output position. ``shape`` is (batch, channels, ...)."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() < 2:
        return 0
    positions = math.prod(shape[1:]) // len(weight)
    return int(weight.numel() * positions)


def _parents(path: str) -> list[str]:
    words = path.split(".")
    return [".".join(words[:i]) for i in range(1, len(words))]
