"""Progressive lowering: training begins with many bits, which are taken away while every quantizer keeps its range.

Source: Zhuang et al., Towards Effective Low-bitwidth Convolutional Neural Networks, CVPR 2018, section 3.2 (progressive
quantization). Departure: the bits of weights and activations are lowered together, at shares of one run, and the learned
steps go on instead of being chosen anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qkd.errors import SchemeError
from qkd.quantizers.fake_quant import FakeQuant, levels
from qkd.quantizers.lsq import LsqQuant


def prepare_bit_schedule(module: nn.Module, bits: Sequence[int]) -> None:
    """Give every quantizer the bits it has in each part of a run: never fewer than its own, which it ends with."""
    for core in (core for core in module.modules() if isinstance(core, FakeQuant)):
        core.ladder = (*(max(core.bits, high) for high in bits[:-1]), core.bits) if bits else ()


def bit_stages(module: nn.Module) -> int:
    """How many parts a run has; 0 where bits stay as they are."""
    return max((len(core.ladder) for core in module.modules() if isinstance(core, FakeQuant)), default=0)


@torch.no_grad()
def set_bit_stage(module: nn.Module, rung: int, *, keep_range: bool) -> bool:
    """Put every quantizer on a rung of its ladder. -> whether any changed

    With ``keep_range`` steps grow by what levels become fewer; without, they are taken to be those of that rung already.
    """
    changed = False
    for core in (core for core in module.modules() if isinstance(core, FakeQuant) and core.ladder):
        assert isinstance(core, LsqQuant)
        bits = core.ladder[rung]
        if bits == core.bits:
            continue
        low, high = levels(bits, core.low < 0, narrow=core.of_weights)
        if keep_range:
            core.step.mul_((core.high - core.low) / (high - low))
        core.bits, core.low, core.high = bits, low, high
        core.bit_width.fill_(float(bits))
        changed = True
    return changed


def require_decreasing(bits: Sequence[int], least: int, families: tuple[str, str]) -> None:
    """Whether bits are a way down to those of a scheme. Raises SchemeError."""
    if not bits:
        return
    if families != ("lsq", "lsq"):
        raise SchemeError(f"progressive: families {' and '.join(families)} cannot be lowered; take family: lsq")
    known = all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= 8 for b in bits)
    if not known or list(bits) != sorted(bits, reverse=True) or bits[-1] != least:
        raise SchemeError(
            f"progressive: {list(bits)} is no way down to {least} bits; write for example {[8, 4, least]}"
        )
