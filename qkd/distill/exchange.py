"""Exchanges: what networks hand to each other between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qkd.distill.adapters import ShapeAdapter
from qkd.distill.importance import Granularity, importance_parameter, mean_weights, weighted_sum, weights_from
from qkd.distill.module_map import ModuleMap
from qkd.distill.stages import Staged
from qkd.distill.taps import LOGITS, SHARED, Tap

Networks = Mapping[str, Staged] | ModuleMap[Staged]


class Exchange(nn.Module, ABC):
    """Called after every stage with the tensors of all networks that run.

    What it returns under a member's name replaces what flows on in that member; under any other name it is only
    recorded, at ``Tap(name, stage)``. ``stages`` are those at which it acts; the members' tensors there must have one
    shape, unless ``adapters`` lead from one to the other. ``passes_gradients``: a member learns through the layers of others.
    """

    members: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    passes_gradients: bool = False
    steady: bool = False
    """Whether the same tensors always give the same: then, with members at rest, results can be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters: ModuleMap[ShapeAdapter] = ModuleMap({})

    @abstractmethod
    def forward(
        self, stage: str, flow: Mapping[str, Tensor], progress: float, networks: Networks
    ) -> Mapping[str, Tensor]:
        """``flow``: what each network gave at the stage. ``progress``: of the phase, 0..1. ``networks``: the networks
        themselves, whose quantizers round what enters them (`to_member`)."""

    def adapt(self, shapes: Mapping[Tap, Sequence[int]], *, back: bool = True) -> None:
        """Put an adapter wherever a member's shape is not that of the first member at the same stage."""
        found = {}
        for stage in self.stages:
            common = shapes[Tap(self.members[0], stage)]
            for member in self.members[1:]:
                own = shapes[Tap(member, stage)]
                if tuple(own) != tuple(common) and len(own) == len(common) == 3:
                    found[_key(str(Tap(member, stage)))] = ShapeAdapter(own, common, back=back)
        self.adapters = ModuleMap(found)

    def adapter(self, tap: Tap) -> ShapeAdapter | None:
        """The adapter between a member's stage and the common shape; None where the shapes are equal."""
        return self.adapters.get(_key(str(tap)))

    def to_common(self, member: str, stage: str, tensor: Tensor) -> Tensor:
        """A member's tensor in the common shape."""
        adapter = self.adapter(Tap(member, stage))
        return tensor if adapter is None else adapter.to_common(tensor)

    def to_member(self, member: str, stage: str, tensor: Tensor, networks: Networks) -> Tensor:
        """A tensor of the common shape in the member's, on the grid of the quantizer that ends this stage of the member.

        A combination of quantized tensors lies on no grid, and the member's next layer reads only its own.
        """
        adapter = self.adapter(Tap(member, stage))
        own = tensor if adapter is None else adapter.to_own(tensor)
        return networks[member].rounded(stage, own) if member in networks else own

    def metrics(self, progress: float) -> dict[str, float]:
        """Numbers worth a curve, by name, at a progress of the phase."""
        return {}


class NoExchange(Exchange):
    """No exchange: networks do not read each other's features."""

    def forward(
        self, stage: str, flow: Mapping[str, Tensor], progress: float, networks: Networks
    ) -> Mapping[str, Tensor]:
        return {}


class Fuse(Exchange):
    """The importance-weighted sum of the members' tensors, recorded as ``shared`` and written back to every member.

    The importance is learned for each layer, channel or sample (`qkd.distill.importance`) and starts uniform. ``shared`` is
    the sum as it is; every quantized member continues from it on a grid of its own. At the stage ``logits`` the members'
    logits are combined (never written back): their mean, or with ``weigh_logits`` a sum with an importance of its own. With
    ``detach_members`` gradients of the fused features reach the importance (and adapters) alone. Given ``shapes``, members
    whose shapes differ from the first member's are adapted to it, and back; an importance that is not for layers needs
    them. Source: Pham et al. 2023, eq. 1, which has teachers of one shape and one weight for each layer.
    """

    steady = True

    def __init__(
        self,
        members: Sequence[str],
        stages: Sequence[str],
        *,
        learned: bool = True,
        per: Granularity = "layer",
        write_back: bool = True,
        weigh_logits: bool = False,
        detach_members: bool = False,
        shapes: Mapping[Tap, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.members, self.stages, self.write_back, self.per = tuple(members), tuple(stages), write_back, per
        self.detach_members = detach_members
        weighted = (*stages, LOGITS) if weigh_logits else tuple(stages)
        self.weighted_stages = weighted if learned else ()
        channels = {stage: shapes[Tap(members[0], stage)][0] if shapes else 0 for stage in self.weighted_stages}
        zeros = {_key(s): importance_parameter(per, len(members), count) for s, count in channels.items()}
        self.importance = nn.ParameterDict(zeros)
        self.seen: dict[str, Tensor] = {}  # the mean weights of the last batch, by stage
        if shapes is not None:
            self.adapt(shapes, back=write_back)

    def weights(self, stage: str, tensors: Sequence[Tensor] = ()) -> Tensor:
        """The weight of each member at a stage: positive, summing to one over the members. ``tensors``: the members'.

        -> (members,), for an importance of channels (members, C), of samples (B, members)
        """
        if stage in self.weighted_stages:
            return weights_from(self.importance[_key(stage)], self.per, tensors)
        return torch.full((len(self.members),), 1 / len(self.members))

    def forward(
        self, stage: str, flow: Mapping[str, Tensor], progress: float, networks: Networks
    ) -> Mapping[str, Tensor]:
        if not all(member in flow for member in self.members) or stage not in (*self.stages, LOGITS):
            return {}
        detach = self.detach_members and stage != LOGITS
        tensors = [flow[member].detach() if detach else flow[member] for member in self.members]
        tensors = [self.to_common(member, stage, tensor) for member, tensor in zip(self.members, tensors, strict=True)]
        weights = self.weights(stage, tensors).to(tensors[0].device)
        per = self.per if stage in self.weighted_stages else "layer"
        if per == "sample":
            self.seen[stage] = mean_weights(weights.detach(), per)
        shared = weighted_sum(tensors, weights, per)
        if stage == LOGITS or not self.write_back:
            return {SHARED: shared}
        return {SHARED: shared, **{member: self.to_member(member, stage, shared, networks) for member in self.members}}

    def metrics(self, progress: float) -> dict[str, float]:
        """The importance of each member at each stage: the mean over channels, or over the samples of the last batch."""
        uniform = torch.full((len(self.members),), 1 / len(self.members))
        found = {
            stage: self.seen.get(stage, uniform)
            if self.per == "sample"
            else mean_weights(self.weights(stage), self.per)
            for stage in self.weighted_stages
        }
        return {
            f"importance/{stage}/{member}": weight
            for stage, weights in found.items()
            for member, weight in zip(self.members, weights.tolist(), strict=True)
        }


class Swap(Exchange):
    """At each stage student and teacher both continue from the output of one of them, drawn at random.

    The student's is kept with the probability ``keep(progress)``, drawn anew for each stage and batch. What enters the other
    network goes through a learned adapter where shapes differ, and is rounded on that network's grid; a network that
    continues from its own output reads it as it is. With ``to_student`` the teacher always does. Without gradients, in
    evaluation, nothing is swapped. Source: Fu et al. 2020 (IAKD); one way: Kim et al. 2023 (teacher intervention).
    """

    passes_gradients = True

    def __init__(
        self,
        student: str,
        teacher: str,
        stages: Sequence[str],
        keep: Callable[[float], float],
        shapes: Mapping[Tap, Sequence[int]],
        *,
        to_student: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.keep, self.stages = (student, teacher), keep, tuple(stages)
        self.to_student = to_student
        self.adapt(shapes, back=not to_student)

    def forward(
        self, stage: str, flow: Mapping[str, Tensor], progress: float, networks: Networks
    ) -> Mapping[str, Tensor]:
        if stage not in self.stages or not torch.is_grad_enabled() or not all(m in flow for m in self.members):
            return {}
        student, teacher = self.members
        kept = float(torch.rand(()) < self.keep(progress))
        # sums, so that the tensor that was not drawn has a gradient: zero
        theirs = self.to_member(student, stage, self.to_common(teacher, stage, flow[teacher]), networks)
        swapped = {student: flow[student] * kept + theirs * (1 - kept)}
        if not self.to_student:
            entering = self.to_member(teacher, stage, flow[student], networks)
            swapped[teacher] = entering * kept + flow[teacher] * (1 - kept)
        return swapped

    def metrics(self, progress: float) -> dict[str, float]:
        return {"keep": self.keep(progress)}


def _key(stage: str) -> str:
    return stage.replace(".", "/")  # torch allows no dot in the name of a parameter
