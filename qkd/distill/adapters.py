"""Adapters: a feature map brought into another shape and back, learned with what uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ShapeAdapter(nn.Module):
    """From a member's own shape (channels, height, width) to a common one, and with ``back`` the way back.

    A 1x1 convolution each way where channels differ; average pooling (towards a larger map: repetition) where sizes do.
    The convolutions start orthogonal and as each other's transpose, so that the round trip is at first the projection on
    the channels that the common shape can hold.
    """

    def __init__(self, own: Sequence[int], common: Sequence[int], *, back: bool = True) -> None:
        super().__init__()
        self.own, self.common = tuple(own), tuple(common)
        convolve = own[0] != common[0]
        self.out: nn.Module = nn.Conv2d(own[0], common[0], 1) if convolve else nn.Identity()
        self.home: nn.Module = nn.Conv2d(common[0], own[0], 1) if convolve and back else nn.Identity()
        if isinstance(self.out, nn.Conv2d):
            nn.init.orthogonal_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        if isinstance(self.home, nn.Conv2d):
            self.home.weight.data.copy_(self.out.weight.data.transpose(0, 1))  # type: ignore[operator]
            nn.init.zeros_(self.home.bias)  # type: ignore[arg-type]

    def to_common(self, x: Tensor) -> Tensor:
        """(B, *own) -> (B, *common)"""
        return _resized(self.out(x), self.common)

    def to_own(self, x: Tensor) -> Tensor:
        """(B, *common) -> (B, *own)"""
        return self.home(_resized(x, self.own))

    def __str__(self) -> str:
        words = [f"1x1 convolution {self.own[0]} -> {self.common[0]}"] * (self.own[0] != self.common[0])
        sizes = shape_text(self.own[1:]), shape_text(self.common[1:])
        return ", ".join([*words, *[f"resized {sizes[0]} -> {sizes[1]}"] * (sizes[0] != sizes[1])])


def _resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(shape[1:]) else F.adaptive_avg_pool2d(x, (shape[1], shape[2]))


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: 16x8x8."""
    return "x".join(map(str, shape))
