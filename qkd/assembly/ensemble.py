"""All that a plan runs as one module: networks advance side by side, stage by stage."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkd.assembly import activation_checkpointing
from qkd.assembly.network_views import NetworkView
from qkd.assembly.product import product_of
from qkd.distill.epoch_statistics import EpochStatistics
from qkd.distill.exchange import Exchange
from qkd.distill.heads import Head
from qkd.distill.module_map import ModuleMap
from qkd.distill.plan import EXCHANGE, Learner, Plan
from qkd.distill.regularizers import Regularizer
from qkd.distill.stages import Flow, Staged
from qkd.distill.taps import Outputs, Tap
from qkd.networks.batch_norm import copied_module

Views = Tensor | tuple[Tensor, ...]


class Ensemble(nn.Module):
    """The networks of a plan, and copies of its exchange, heads, regularizers and statistics, so that the plan stays as it is.

    ``heads`` are used instead of copies of the plan's heads (`quantized_heads`). Of a network that is a view of another one
    (`NetworkView`) only a moving average is registered, under ``averages``: its parameters are those of its owner.
    """

    def __init__(self, networks: Mapping[str, Staged], plan: Plan, heads: Mapping[str, Head] | None = None) -> None:
        super().__init__()
        self.tied = {name: each for name, each in networks.items() if isinstance(each, NetworkView)}
        self.networks: ModuleMap[Staged] = ModuleMap(networks, borrowed=self.tied)
        averages = {name: each.average for name, each in self.tied.items() if each.average is not None}
        self.averages: ModuleMap[fx.GraphModule] = ModuleMap(averages)
        self.exchange: Exchange = copied_module(plan.exchange)
        self.views = dict(plan.views)
        self.recomputed: frozenset[str] = frozenset()  # networks that recompute activations instead of keeping them
        own = {head.name: copied_module(head) for head in plan.heads} if heads is None else heads
        self.heads: ModuleMap[Head] = ModuleMap(own)
        self.regularizers: ModuleMap[Regularizer] = ModuleMap(
            {each.key: copied_module(each) for each in plan.regularizers}
        )
        self.statistics: ModuleMap[EpochStatistics] = ModuleMap(
            {each.name: copied_module(each) for each in plan.statistics}
        )
        self._products: list[nn.Module] = []  # in a list, so that it is no submodule
        self.snapshot_regularizers()

    def _apply(self, fn: Any, recurse: bool = True) -> Ensemble:
        self._products.clear()  # buffers may be replaced, not changed in place
        super()._apply(fn, recurse)
        for view in self.tied.values():
            view.renew()
        return self

    @property
    def owners(self) -> dict[str, Staged]:
        """The networks that have parameters of their own, by name."""
        return {name: network for name, network in self.networks.items() if name not in self.tied}

    def forward(self, images: Views, active: Collection[str], progress: float = 1.0) -> Outputs:
        """Every tap of the active networks, what the exchange records, and the heads whose sources ran.

        All networks get the same ``images`` (batch, C, H, W), or of several views the one the plan gives them. They
        advance one stage, then the exchange may replace what flows on; a tap holds what its network gave before that.
        ``progress`` of the phase, 0..1, is for the exchange.
        """
        outputs: Outputs = {each.tap: each.result() for each in self.statistics.values()}
        networks = {name: network for name, network in self.networks.items() if name in active}
        flow: dict[str, Flow] = {name: (self.view(name, images),) for name in networks}
        for stage in next(iter(networks.values())).names:
            flow = {name: self.advance(name, stage, flow[name]) for name in networks}
            tensors = {name: crossing[0] for name, crossing in flow.items()}
            outputs |= {Tap(name, stage): tensor for name, tensor in tensors.items()}
            for name, tensor in self.exchange(stage, tensors, progress, self.networks).items():
                if name in flow:
                    flow[name] = (tensor, *flow[name][1:])
                else:
                    outputs[Tap(name, stage)] = tensor
        for head in self.heads.values():
            if all(tap in outputs for tap in head.reads):
                outputs |= head(outputs, self.networks)
        for regularizer in self.regularizers.values() if torch.is_grad_enabled() else ():
            if regularizer.part in networks:
                outputs[regularizer.tap] = regularizer(self.networks[regularizer.part])
        return outputs

    def advance(self, part: str, stage: str, flow: Flow) -> Flow:
        network = self.networks[part]
        return (
            activation_checkpointing.advance(network, stage, flow)
            if part in self.recomputed
            else network.advance(stage, flow)
        )

    def view(self, part: str, images: Views) -> Tensor:
        """The images that a network gets."""
        return images if isinstance(images, Tensor) else images[self.views.get(part, 0)]

    def snapshot_regularizers(self) -> None:
        """Take the present weights as those that regularizers compare with; called when a phase begins."""
        for regularizer in self.regularizers.values():
            regularizer.snapshot(self.networks[regularizer.part])

    def start_averages(self) -> None:
        """Every moving average begins as its owner is now; called before the first step."""
        for view in self.tied.values():
            view.start()

    def update_averages(self, number: int) -> None:
        """Move every average towards its owner; ``number``: of the batch just trained on, from 1."""
        for view in self.tied.values():
            view.update(number)

    def part(self, name: str) -> nn.Module:
        """A network, a head or the exchange by its name."""
        if name == EXCHANGE:
            return self.exchange
        return self.networks[name] if name in self.networks else self.heads[name]

    def modules_of(self, learner: Learner) -> Iterator[nn.Module]:
        """The modules of a learner: a whole part, the layers of one stage of a network, or a submodule."""
        module = self.part(learner.part)
        if not learner.piece:
            return iter(
                (module.body if isinstance(module, Head) else module,)
            )  # a borrowed classifier is not the head's
        if isinstance(module, Staged):
            return module.modules_of(learner.piece)
        return iter((module.get_submodule(learner.piece),))

    def modules_outside(self, learners: Iterable[Learner]) -> set[nn.Module]:
        """The modules that belong to none of the learners."""
        inside = {m for learner in learners for module in self.modules_of(learner) for m in module.modules()}
        return set(self.modules()) - inside

    def set_learners(self, learners: Iterable[Learner]) -> None:
        """Put the learners into training mode with gradients, everything else into evaluation mode without."""
        self.train(False).requires_grad_(False)
        for learner in sorted(learners):
            for module in self.modules_of(learner):
                module.train().requires_grad_(True)

    def product(self, plan: Plan) -> nn.Module:
        """What is deployed, as one traceable module images -> logits; it shares its layers with the ensemble."""
        if not self._products:
            self._products.append(product_of(plan, self.networks, self.heads))
        return self._products[0]
