"""Exchange: what networks hand each other between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkd.distill.adapters import ShapeAdapter
from qkd.distill.module_map import ModuleMap
from qkd.distill.taps import LOGITS, SHARED, Tap

if TYPE_CHECKING:
    from qkd.distill.stages import Staged


class Exchange(nn.Module, ABC):
    """Called after every stage with the tensors of all parts that run.

    What it returns under a member's name replaces what flows on in that member; under any other name it is only
    recorded, at ``Tap(name, stage)``. ``stages`` are those at which it acts; the members' tensors there must have one
    shape, unless ``adapters`` lead from one to the other. A combination of quantized tensors lies on no grid: `entered`
    puts it on that of the member it goes to.
    """

    members: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    progress: float = 0.0  # how far the phase is, 0..1; told before each step
    networks: tuple[ModuleMap[Staged], ...] = ()
    """Whose quantizers round what enters them, as `Ensemble` tells; in a tuple, so that they are no part of this module."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters: ModuleMap[ShapeAdapter] = ModuleMap({})

    @abstractmethod
    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...

    def adapt(self, shapes: Mapping[Tap, Sequence[int]], *, back: bool = True) -> None:
        """Put a passage wherever a member's shape is not that of the first member at the same stage."""
        found = {}
        for stage in self.stages:
            common = shapes[Tap(self.members[0], stage)]
            for member in self.members[1:]:
                own = shapes[Tap(member, stage)]
                if tuple(own) != tuple(common) and len(own) == len(common) == 3:
                    found[_key(str(Tap(member, stage)))] = ShapeAdapter(own, common, back=back)
        self.adapters = ModuleMap(found)

    def left(self, member: str, stage: str, tensor: Tensor) -> Tensor:
        """A member's tensor in the common shape."""
        passage = self.adapter(Tap(member, stage))
        return tensor if passage is None else passage.leave(tensor)

    def entered(self, member: str, stage: str, tensor: Tensor) -> Tensor:
        """A tensor of the common shape in the member's, on the grid of what the member itself makes at that stage."""
        passage = self.adapter(Tap(member, stage))
        own = tensor if passage is None else passage.enter(tensor)
        return self.networks[0][member].rounded(stage, own) if self.networks else own

    def adapter(self, tap: Tap) -> ShapeAdapter | None:
        """What leads from a member's stage into the common shape; None where nothing has to."""
        return self.adapters.get(_key(str(tap)))

    def metrics(self) -> dict[str, float]:
        """What is worth a curve, by name."""
        return {}


class NoExchange(Exchange):
    """Everybody for himself."""

    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {}


class Fuse(Exchange):
    """The importance-weighted sum of the members' tensors, recorded as ``shared`` and written back to every member.

    ``softmax(importance[stage])`` weighs the members; it starts uniform. ``shared`` is the sum as it is; every quantized
    member goes on from it on a grid of its own. At the stage ``logits`` the members' logits are
    combined (never written back): their mean, or with ``weigh_logits`` a sum with an importance of its own. With
    ``hold_members`` gradients of the fused features reach the importance (and adapters) alone. Given the members'
    ``shapes``, whoever differs from the first member is adapted to it, and back. Source: Pham et al. 2023, eq. 1, which
    has teachers of one shape.
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
        shapes: Mapping[Tap, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.members, self.stages, self.write_back = tuple(members), tuple(stages), write_back
        self.hold_members = hold_members
        weighed = (*stages, LOGITS) if weigh_logits else tuple(stages)
        self.weighed = weighed if learned else ()
        self.importance = nn.ParameterDict({_key(s): nn.Parameter(torch.zeros(len(members))) for s in self.weighed})
        if shapes is not None:
            self.adapt(shapes, back=write_back)

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
        tensors = [self.left(member, stage, tensor) for member, tensor in zip(self.members, tensors, strict=True)]
        shared = tensors[0] * weights[0]
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            shared = shared + tensor * weight
        if stage == LOGITS or not self.write_back:
            return {SHARED: shared}
        return {SHARED: shared, **{member: self.entered(member, stage, shared) for member in self.members}}

    def metrics(self) -> dict[str, float]:
        return {
            f"importance/{stage}/{member}": weight
            for stage in self.weighed
            for member, weight in zip(self.members, self.weights(stage).tolist(), strict=True)
        }


class Swap(Exchange):
    """Chance decides at each stage whose output student and teacher go on from.

    The student's own is kept with the probability ``keep(progress)``, drawn anew for each stage and batch. Where shapes
    differ, learned adapters lead out of the teacher and back into it. Without gradients, in evaluation, nothing is
    swapped. Source: Fu et al. 2020 (IAKD).
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        stages: Sequence[str],
        keep: Callable[[float], float],
        shapes: Mapping[Tap, Sequence[int]],
    ) -> None:
        super().__init__()
        self.members, self.keep, self.stages = (student, teacher), keep, tuple(stages)
        self.adapt(shapes)

    def forward(self, stage: str, flow: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if stage not in self.stages or not torch.is_grad_enabled() or not all(m in flow for m in self.members):
            return {}
        student, teacher = self.members
        kept = float(torch.rand(()) < self.keep(self.progress))
        theirs = self.left(teacher, stage, flow[teacher])
        # a sum, so that whatever was not drawn has a gradient: zero
        hybrid = flow[student] * kept + self.entered(student, stage, theirs) * (1 - kept)
        return {student: hybrid, teacher: self.entered(teacher, stage, hybrid)}

    def metrics(self) -> dict[str, float]:
        return {"keep": self.keep(self.progress)}


def _key(stage: str) -> str:
    return stage.replace(".", "/")  # torch allows no dot in the name of a parameter
