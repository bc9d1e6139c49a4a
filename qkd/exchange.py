"""Exchange: what networks hand each other between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qkd.taps import LOGITS, SHARED


class Exchange(nn.Module, ABC):
    """Called after every stage with the tensors of all parts that run.

    What it returns under a member's name replaces what flows on in that member; under any other name it is only
    recorded, at ``Tap(name, stage)``. ``stages`` are those at which the members' tensors must have one shape. Values are
    plain tensors: a convex combination of quantized tensors lies on no grid, the next layer's quantizer takes care of it.
    """

    members: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...

    def metrics(self) -> dict[str, float]:
        """What is worth a curve, by name."""
        return {}


class NoExchange(Exchange):
    """Everybody for himself."""

    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {}


class Fuse(Exchange):
    """The importance-weighted sum of the members' tensors, recorded as ``shared`` and written back to every member.

    ``softmax(importance[stage])`` weighs the members; it starts uniform. At the stage ``logits`` the members' logits are
    combined (never written back): their mean, or with ``weigh_logits`` a sum with an importance of its own. With
    ``hold_members`` gradients of the fused features reach the importance alone.
    Source: Pham et al. 2023, eq. 1.
    """

    def __init__(
        self,
        members: Sequence[str],
        stages: Sequence[str],
        *,
        learned: bool = True,
        write_back: bool = True,
        weigh_logits: bool = False,
        hold_members: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.stages, self.write_back = tuple(members), tuple(stages), write_back
        self.hold_members = hold_members
        weighed = (*stages, LOGITS) if weigh_logits else tuple(stages)
        self.weighed = weighed if learned else ()
        self.importance = nn.ParameterDict({_key(s): nn.Parameter(torch.zeros(len(members))) for s in self.weighed})

    def weights(self, stage: str) -> Tensor:
        """How much each member counts at a stage: positive, summing to one. -> (members,)"""
        if stage in self.weighed:
            return self.importance[_key(stage)].softmax(0)
        return torch.full((len(self.members),), 1 / len(self.members))

    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not all(member in flow for member in self.members) or stage not in (*self.stages, LOGITS):
            return {}
        weights = self.weights(stage).to(flow[self.members[0]].device)
        held = self.hold_members and stage != LOGITS
        tensors = [flow[member].detach() if held else flow[member] for member in self.members]
        shared = tensors[0] * weights[0]
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            shared = shared + tensor * weight
        if stage == LOGITS or not self.write_back:
            return {SHARED: shared}
        return {SHARED: shared, **dict.fromkeys(self.members, shared)}

    def metrics(self) -> dict[str, float]:
        return {
            f"importance/{stage}/{member}": weight
            for stage in self.weighed
            for member, weight in zip(self.members, self.weights(stage).tolist(), strict=True)
        }


def _key(stage: str) -> str:
    return stage.replace(".", "/")  # torch allows no dot in the name of a parameter
