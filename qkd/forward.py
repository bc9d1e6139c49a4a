"""Forward: run the parts side by side, stage by stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from qkd.heads import Deployed, Head
from qkd.members import Members
from qkd.networks.staged import Flow, Staged
from qkd.plan import EXCHANGE, Plan
from qkd.taps import Outputs, Tap


class Parts(nn.Module):
    """All that a plan runs, as one module, so that one wrapper (a device, DDP) holds all of it."""

    def __init__(self, networks: Mapping[str, Staged], plan: Plan) -> None:
        super().__init__()
        self.networks: Members[Staged] = Members(networks)
        self.exchange = plan.exchange
        self.heads: Members[Head] = Members({head.name: head for head in plan.heads})

    def forward(self, images: Tensor, active: Collection[str]) -> Outputs:
        """Every tap of the active networks, what the exchange recorded, and the heads whose sources ran.

        All networks advance one stage, then the exchange may replace what flows on. A tap holds what its network
        produced, before the exchange.
        """
        outputs: Outputs = {}
        networks = {name: network for name, network in self.networks.items() if name in active}
        flow: dict[str, Flow] = {name: (images,) for name in networks}
        for stage in next(iter(networks.values())).names:
            flow = {name: network.advance(stage, flow[name]) for name, network in networks.items()}
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
        return outputs

    def part(self, name: str) -> nn.Module:
        """A network, a head or the exchange by its name."""
        if name == EXCHANGE:
            return self.exchange
        return self.networks[name] if name in self.networks else self.heads[name]

    def modules_of(self, learner: str) -> Iterator[nn.Module]:
        """The modules behind a learner: a whole part, or the layers of one stage (``expert.logits``)."""
        part, _, stage = learner.partition(".")
        module = self.part(part)
        if not stage:
            return iter((module,))
        assert isinstance(module, Staged)
        return module.modules_of(stage)

    def learn(self, learners: Collection[str]) -> None:
        """Put the learners into training mode with gradients; everybody else into evaluation mode without."""
        self.train(False).requires_grad_(False)
        for learner in sorted(learners):
            for module in self.modules_of(learner):
                module.train().requires_grad_(True)

    def product(self, plan: Plan) -> nn.Module:
        """What is deployed, as one module images -> logits that can be traced."""
        if plan.product in self.networks:
            return self.networks[plan.product].network
        return Deployed(self.heads[plan.product], self.networks)
