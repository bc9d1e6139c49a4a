"""Views of a network: a part whose parameters are another part's, seen with other bits or as their moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import fx

from qkd.distill.moving_average import averaged_tensors, move_average
from qkd.distill.stages import Flow, Staged
from qkd.errors import PlanError
from qkd.networks.batch_norm import copied_module
from qkd.quantizers.views import layers_seen

if TYPE_CHECKING:
    from qkd.distill.plan import Plan, Tied


class NetworkView(Staged):
    """The stages of ``owner``, over its own layers or over a moving average of them. It never learns, and passes no gradient.

    While the owner trains, batch norms normalise with the statistics of the batch, as the owner's do, and store nothing:
    running statistics are the owner's alone. In evaluation they use the running ones.

    ``average`` is the averaged copy of the owner's network, None where the view sees the owner's own layers. Parameters stay
    with their owner, so an ensemble registers nothing of a view but its average.
    """

    def __init__(self, owner: Staged, tied: Tied) -> None:
        self.tied, self._owner = tied, (owner,)  # in a tuple, so that it is no submodule of the view
        average = copied_module(owner.network) if tied.average is not None else None
        self._average = (average,)
        super().__init__(self._seen(), owner.graphs)

    @property
    def average(self) -> fx.GraphModule | None:
        return self._average[0]

    def _seen(self) -> fx.GraphModule:
        owner = self._owner[0].network
        return layers_seen(self.average or owner, owner, self.tied.activations, self.tied.share, self.tied.dropout)

    def renew(self) -> None:
        """Read the owner's tensors anew: those that the graph reads directly were replaced by a move to another device."""
        self.network = self._seen()
        self._stages = self._link()

    @torch.no_grad()
    def advance(self, stage: str, flow: Flow) -> Flow:
        return super().advance(stage, flow)

    def start(self) -> None:
        """The average begins as the owner is now."""
        if self.average is not None:
            self.average.load_state_dict(self._owner[0].network.state_dict())

    def update(self, number: int) -> None:
        """Move the average towards the owner; ``number``: of the optimizer step just taken, from 1."""
        if self.average is not None and self.tied.average is not None:
            move_average(averaged_tensors(self.average), self._owner[0].network, self.tied.average, number)


def check_network_views(plan: Plan, tied: Mapping[str, Tied]) -> None:
    """Raises PlanError for a plan in which a view would learn, be deployed, or have to pass a gradient on."""
    for phase in plan.phases:
        for part in sorted(phase.parts & tied.keys()):
            raise PlanError(
                f"phase {phase.name}: {part} cannot learn: its parameters are those of {tied[part].of}; take a method, or an "
                f"option of this one, whose teachers do not learn",
                key="plan.view-learns",
            )
    deployed = {plan.product}.union(*(head.parts for head in plan.deployed()))
    for part in sorted(deployed & tied.keys()):
        raise PlanError(
            f"{part} cannot be part of the product: it is a view of {tied[part].of}, which can be deployed itself",
            key="plan.view-in-product",
        )
    through = {head.via.part for head in plan.heads if head.via is not None}
    through |= set(plan.exchange.members) if plan.exchange.passes_gradients else set()
    for part in sorted(through & tied.keys()):
        raise PlanError(
            f"the loss sends a gradient through {part}, which passes none: it is a view of {tied[part].of}; take a network "
            f"of its own",
            key="plan.gradient-through-view",
        )
