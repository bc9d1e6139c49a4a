"""Whether a file is the network that was trained: PyTorch and onnxruntime compared layer by layer, from the same integers.

The emulator reads the file, so it proves what onnxruntime computes with it and not that it is the right one. If PyTorch
and onnxruntime ran separately they would drift apart wherever a number falls on a tie, at two bits as far as another
top-1. So at every quantizer PyTorch goes on with the integers of the file, and what it computes before the next one has
to lie within half a unit of the file's integer there. Only what rounding a bias moved, which is known for each layer, is
allowed on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from qkd.errors import GateError
from qkd.export.emission import Emitted
from qkd.export.fx_nodes import traced
from qkd.export.onnx_graph import INPUT, OUTPUT
from qkd.export.quantizer_map import MappedQuantizer
from qkd.export.session import open_session, run
from qkd.quantizers import disabled

LEEWAY = 0.25
"""Units of a grid that the float32 sums of PyTorch, added in another order, may be off; a wrong layer is off by many."""
OF_LOGITS = 1e-3
"""The same for logits, as a share of the largest."""
IMAGES, PIXELS = 32, 2**20
"""Images that are compared at most, and numbers in them: every tensor of the network is kept at once."""


@dataclass(frozen=True)
class Parity:
    """The result. quantizers: how many were compared. same: share of their integers that are equal in PyTorch, in %.

    wrong: the first quantizer, or the logits, where the file does not hold what PyTorch computes, and by how much; empty
    if there is none.
    """

    quantizers: int
    same: float
    wrong: str = ""


def torch_parity(product: nn.Module, emitted: Emitted, images: np.ndarray, floats: np.ndarray | None = None) -> Parity:
    """Compares the deployed model, in evaluation mode, with its exported form on the first of the images.

    images: as the file takes them. floats: the same ones, normalised (N, C, H, W), where the file takes uint8 images.
    """
    count = max(2, min(IMAGES, PIXELS // max(images[0].size, 1)))
    given = images[:count]
    module = traced(product)
    forced = _WithIntegersOfFile(module, emitted.quantizers, _integers_in_file(emitted, given))
    first = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        inputs = torch.from_numpy(np.ascontiguousarray(given if floats is None else floats[:count]))
        logits = forced.run(inputs.to(first.device, first.dtype)).cpu().float().numpy()
    wrong = forced.wrong or _wrong_logits(logits, run(open_session(emitted.model), given), emitted.unrounded)
    return Parity(forced.compared, 100 * forced.equal / max(forced.values, 1), wrong)


def float_parity(network: nn.Module, model: onnx.ModelProto, images: np.ndarray) -> str:
    """What is wrong with the float file of a network, as `emit_float` makes it, on the first of the images; empty if nothing.

    ``images`` are normalised floats (N, C, H, W).
    """
    with disabled(network):
        return torch_parity(network, Emitted(model, (), (), ""), images).wrong


def require_parity(found: Parity, where: object) -> None:
    """Raises GateError, naming the first layer, for a file that is not the network that was trained."""
    if found.wrong:
        raise GateError(f"{where}: is not the network that was trained: {found.wrong}", key="gate.other-network")


class _WithIntegersOfFile(fx.Interpreter):
    """Runs the network, with the file's integers in place of every quantizer's result, after comparing the two."""

    def __init__(
        self, module: fx.GraphModule, quantizers: Mapping[str, MappedQuantizer], integers: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__(module)
        self.quantizers, self.integers = quantizers, integers
        self.compared, self.values, self.equal, self.wrong = 0, 0, 0, ""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        mapped = self.quantizers.get(n.name)
        if mapped is None or mapped.integers not in self.integers:
            return result
        integers = torch.from_numpy(self.integers[mapped.integers]).to(result.device)
        return self._compare(mapped, self.env[n.args[0]], result, integers)  # type: ignore[index]

    def _compare(self, mapped: MappedQuantizer, before: Tensor, after: Tensor, integers: Tensor) -> Tensor:
        grid, self.compared = mapped.grid, self.compared + 1
        if integers.shape != after.shape:
            self._note(
                f"{mapped.quantizer}: {tuple(integers.shape)} values in the file, in PyTorch {tuple(after.shape)}"
            )
            return after
        theirs = ((integers.float() - grid.zero_point) * float(grid.scale)).to(after.dtype)
        same = after == theirs
        exact, ours = (part.double() / float(grid.scale) + grid.zero_point for part in (before, after))
        exact = exact.clamp(grid.low, grid.high)
        away = ((exact - integers.double()).abs() - mapped.slack).maximum((exact - ours).abs()).masked_fill_(same, 0)
        self.values, self.equal = self.values + integers.numel(), self.equal + int(same.sum())
        far = ~(away <= 0.5 + LEEWAY)  # what is not a number is far too
        if far.any():
            self._note(
                f"{mapped.quantizer}: {int(far.sum())} of {far.numel()} integers are not what PyTorch computes from "
                f"the same input, by up to {float(away.max()):.3g}"
            )
        return theirs

    def _note(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong


def _integers_in_file(emitted: Emitted, images: np.ndarray) -> dict[str, np.ndarray]:
    """The integers of every quantizer's result in onnxruntime."""
    made = {output for node in emitted.model.graph.node for output in node.output}
    names = sorted({mapped.integers for mapped in emitted.quantizers.values()} & made)
    if not names:  # without names of outputs onnxruntime computes all
        return {}
    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    return dict(zip(names, open_session(model).run(names, {INPUT: images}), strict=True))


def _wrong_logits(ours: np.ndarray, theirs: np.ndarray, moved: float) -> str:
    if ours.shape != theirs.shape:
        return f"{OUTPUT}: {theirs.shape} in the file, in PyTorch {ours.shape}"
    off = np.abs(ours - theirs).max()
    if off <= moved + OF_LOGITS * np.abs(theirs).max():
        return ""
    return f"{OUTPUT}: off by up to {off:.3g} from what PyTorch computes from the same input"
