"""Progressive quantization: training begins with many bits and goes down to few, while every quantizer keeps its range.

Source: Zhuang et al., Towards Effective Low-bitwidth Convolutional Neural Networks, CVPR 2018, section 3.2 (progressive
quantization). Departure: the bits of weights and activations are lowered together, at shares of one run, and the learned
scales go on instead of being chosen anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qkd.errors import SchemeError
from qkd.quantizers.fake_quant import cores_of
from qkd.quantizers.lsq import LsqQuant


def prepare_bit_schedule(module: nn.Module, bits: Sequence[int]) -> None:
    """Give every quantizer the bits of each stage of a run: never fewer than its own, which are those of the last."""
    for core in cores_of(module):
        core.bit_schedule = (*(max(core.bits, more) for more in bits[:-1]), core.bits) if bits else ()


def bit_stages(module: nn.Module) -> int:
    """How many stages a run has; 0 where bits stay as they are."""
    return max((len(core.bit_schedule) for core in cores_of(module)), default=0)


@torch.no_grad()
def set_bit_stage(module: nn.Module, stage: int, *, keep_range: bool) -> bool:
    """Give every quantizer with a bit schedule the bits of a stage. -> whether any changed

    With ``keep_range`` steps grow as there are fewer levels; without, they are taken to be those of that stage already.
    """
    changed = False
    for core in cores_of(module):
        if not core.bit_schedule or core.bit_schedule[stage] == core.bits:
            continue
        assert isinstance(core, LsqQuant)
        lowest, highest = core.ends
        core.set_bits(core.bit_schedule[stage])
        if keep_range:
            core.step.mul_((highest - lowest) / (core.ends[1] - core.ends[0]))
        changed = True
    return changed


def schedule_mistake(bits: Sequence[int], last: int, families: tuple[str, str]) -> SchemeError | None:
    """What keeps bits from being a schedule that ends at those of a scheme, or None."""
    if not bits:
        return None
    if families != ("lsq", "lsq"):
        text = f"progressive: families {' and '.join(families)} cannot be lowered; take family: lsq"
        return SchemeError(text, key="scheme.progressive-family")
    possible = all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= 8 for b in bits)
    if possible and list(bits) == sorted(bits, reverse=True) and bits[-1] == last:
        return None
    text = f"progressive: bits must decrease and end at {last}, got {list(bits)}; write for example {[8, 4, last]}"
    return SchemeError(text, key="scheme.progressive-bits")
