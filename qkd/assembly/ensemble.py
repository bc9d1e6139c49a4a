"""Forward: run the parts side by side, stage by stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qkd.assembly import recompute
from qkd.assembly.product import product_of
from qkd.distill.epoch_statistics import EpochStatistics
from qkd.distill.heads import Head
from qkd.distill.module_map import ModuleMap
from qkd.distill.plan import EXCHANGE, Plan
from qkd.distill.regularizers import L2SP
from qkd.distill.stages import Flow, Staged
from qkd.distill.taps import Outputs, Tap


class Ensemble(nn.Module):
    """All that a plan runs, as one module, so that one wrapper (a device, DDP) holds all of it."""

    def __init__(self, networks: Mapping[str, Staged], plan: Plan) -> None:
        super().__init__()
        self.networks: ModuleMap[Staged] = ModuleMap(networks)
        self.exchange = plan.exchange
        self.exchange.networks = (self.networks,)
        self.views = dict(plan.views)
        self.recomputed: frozenset[str] = frozenset()  # networks that compute activations again instead of keeping them
        self.heads: ModuleMap[Head] = ModuleMap({head.name: head for head in plan.heads})
        self.anchors: ModuleMap[L2SP] = ModuleMap({anchor.part: anchor for anchor in plan.anchors})
        self.surveys: ModuleMap[EpochStatistics] = ModuleMap({str(i): survey for i, survey in enumerate(plan.surveys)})
        self._products: list[nn.Module] = []  # in a list, so that it is not a part of its own
        self.remember()

    def _apply(self, fn: Any, recurse: bool = True) -> Ensemble:
        self._products.clear()  # buffers may be replaced, not changed in place
        super()._apply(fn, recurse)
        return self

    def forward(self, images: Tensor | tuple[Tensor, ...], active: Collection[str]) -> Outputs:
        """Every tap of the active networks, what the exchange recorded, and the heads whose sources ran.

        ``images`` (batch, C, H, W) are shown to everybody; of several views each network sees the one the plan gives it.
        All networks advance one stage, then the exchange may replace what flows on. A tap holds what its network
        produced, before the exchange.
        """
        outputs: Outputs = {}
        networks = {name: network for name, network in self.networks.items() if name in active}
        flow: dict[str, Flow] = {name: (self.view(name, images),) for name in networks}
        for stage in next(iter(networks.values())).names:
            flow = {name: self.advance(name, stage, flow[name]) for name in networks}
            heard = {name: tensors[0] for name, tensors in flow.items()}
            outputs |= {Tap(name, stage): tensor for name, tensor in heard.items()}
            for name, tensor in self.exchange(stage, heard).items():
                if name in flow:
                    flow[name] = (tensor, *flow[name][1:])
                else:
                    outputs[Tap(name, stage)] = tensor
        for head in self.heads.values():
            if all(tap in outputs for tap in head.reads):
                outputs |= head(outputs, self.networks)
        for anchor in self.anchors.values() if torch.is_grad_enabled() else ():
            if anchor.part in networks:
                outputs[anchor.tap] = anchor(self.networks[anchor.part])
        return outputs

    def advance(self, part: str, stage: str, flow: Flow) -> Flow:
        network = self.networks[part]
        return recompute.advance(network, stage, flow) if part in self.recomputed else network.advance(stage, flow)

    def view(self, part: str, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        return images if isinstance(images, Tensor) else images[self.views.get(part, 0)]

    def remember(self) -> None:
        """A phase begins: what terms over parameters compare with is what parameters are now."""
        for anchor in self.anchors.values():
            anchor.remember(self.networks[anchor.part])

    def part(self, name: str) -> nn.Module:
        """A network, a head or the exchange by its name."""
        if name == EXCHANGE:
            return self.exchange
        return self.networks[name] if name in self.networks else self.heads[name]

    def modules_of(self, learner: str) -> Iterator[nn.Module]:
        """The modules behind a learner: a whole part, the layers of one stage (``expert.logits``), a piece of the exchange."""
        part, _, stage = learner.partition(".")
        module = self.part(part)
        if not stage:
            return iter((module.body if isinstance(module, Head) else module,))  # what is borrowed is not the head's
        return module.modules_of(stage) if isinstance(module, Staged) else iter((module.get_submodule(stage),))

    def outside(self, learners: Collection[str]) -> set[nn.Module]:
        """The modules that belong to none of the learners."""
        inside = {m for learner in learners for module in self.modules_of(learner) for m in module.modules()}
        return set(self.modules()) - inside

    def at(self, progress: float) -> None:
        """How far the phase is, 0..1, for an exchange that acts differently early and late."""
        self.exchange.progress = progress

    def learn(self, learners: Collection[str]) -> None:
        """Put the learners into training mode with gradients; everybody else into evaluation mode without."""
        self.train(False).requires_grad_(False)
        for learner in sorted(learners):
            for module in self.modules_of(learner):
                module.train().requires_grad_(True)

    def product(self, plan: Plan) -> nn.Module:
        """What is deployed, as one module images -> logits that can be traced; its layers are those of the parts."""
        if not self._products:
            self._products.append(product_of(plan, self.networks, self.heads))
        return self._products[0]
