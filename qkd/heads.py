"""Head: an extra output fed by taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkd.members import Members
from qkd.networks.staged import Flow, Staged
from qkd.taps import Outputs, Tap

PROJECTED = "projected"


class Head(nn.Module):
    """A part without a backbone: reads taps, joins them along the channels, runs ``body``, writes ``Tap(name)``.

    With ``via=Tap(owner, stage)`` the body is a projector: its output is recorded as ``Tap(name, "projected")`` and goes
    on through the owner's stage (a borrowed classifier).
    """

    def __init__(self, name: str, reads: Sequence[Tap], body: nn.Module, via: Tap | None = None) -> None:
        super().__init__()
        self.name, self.reads, self.body, self.via = name, tuple(reads), body, via

    @property
    def parts(self) -> set[str]:
        """The networks that must run for this head."""
        return {tap.part for tap in self.reads} | ({self.via.part} if self.via else set())

    def forward(self, outputs: Outputs, networks: Members[Staged]) -> Outputs:
        x = self.body(
            torch.cat([outputs[tap] for tap in self.reads], 1) if len(self.reads) > 1 else outputs[self.reads[0]]
        )
        if self.via is None:
            return {Tap(self.name): x}
        borrowed = networks[self.via.part].advance(self.via.stage, (x,))[0]
        return {Tap(self.name, PROJECTED): x, Tap(self.name): borrowed}


class Deployed(nn.Module):
    """The product as one traceable module: the networks a head reads, the head, and its borrowed classifier."""

    def __init__(self, head: Head, networks: Members[Staged]) -> None:
        super().__init__()
        self.head = head
        self.networks: Members[Staged] = Members({name: networks[name] for name in sorted(head.parts)})

    def forward(self, images: Tensor) -> Tensor:
        outputs: Outputs = {}
        for part in sorted({tap.part for tap in self.head.reads}):
            outputs |= run_alone(part, self.networks[part], images)
        return self.head(outputs, self.networks)[Tap(self.head.name)]


def run_alone(part: str, network: Staged, images: Tensor) -> Outputs:
    """All taps of one network, run by itself."""
    outputs: Outputs = {}
    flow: Flow = (images,)
    for stage in network.names:
        flow = network.advance(stage, flow)
        outputs[Tap(part, stage)] = flow[0]
    return outputs


def classifier(channels: int, classes: int) -> nn.Module:
    """Global average pooling and a linear layer: (B, C, H, W) -> (B, classes)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
