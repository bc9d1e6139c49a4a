"""Networks as ordered named stages, cut from any traceable network at module paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from qkd.distill.taps import LOGITS
from qkd.errors import NetworkError, nearest
from qkd.networks.tracing import trace, where_from

Flow = tuple[Any, ...]  # what crosses a cut: the tapped tensor first, then all else that later stages read


class Staged(nn.Module):
    """A network that advances one named stage at a time; its state dict is that of the network it was cut from.

    The stages are not registered: they share the layers of ``network`` and hold no parameters of their own.
    """

    def __init__(self, network: fx.GraphModule, graphs: Mapping[str, fx.Graph]) -> None:
        super().__init__()
        self.network = network
        self._graphs = dict(graphs)
        self._stages = self._link()

    def _link(self) -> dict[str, fx.GraphModule]:
        return {name: fx.GraphModule(self.network, graph) for name, graph in self._graphs.items()}

    def _apply(self, fn: Any, recurse: bool = True) -> Staged:
        super()._apply(fn, recurse)
        self._stages = self._link()  # buffers that the graph reads directly were replaced, not changed in place
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._graphs)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The graph of each stage, by name."""
        return dict(self._graphs)

    def advance(self, stage: str, flow: Flow) -> Flow:
        """The flow after one stage; its first entry is the tensor at ``Tap(part, stage)``."""
        result = self._stages[stage].forward(*flow)  # .forward, so that a tracer sees the layers and not the stage
        return result if isinstance(result, tuple) else (result,)

    def stage(self, name: str) -> fx.GraphModule:
        """One stage as a graph of its own over the layers of the network."""
        return fx.GraphModule(self.network, self._graphs[name])

    def inputs(self, stage: str) -> int:
        """How many tensors a stage reads."""
        return sum(node.op == "placeholder" for node in self._graphs[stage].nodes)

    def replace_stages(self, change: Any) -> None:
        """Run ``change(stage)`` in place of each stage from now on: the hook for torch.compile."""
        self._stages = {name: change(stage) for name, stage in self._stages.items()}

    def modules_of(self, stage: str) -> Iterator[nn.Module]:
        """The layers that a stage calls."""
        targets = {str(node.target) for node in self._graphs[stage].nodes if node.op == "call_module"}
        return (self.network.get_submodule(target) for target in sorted(targets))

    @property
    def result(self) -> Any:
        """What the network returns, in nodes of the last stage: one of them, or a tuple or dictionary of them."""
        return next(node.args[0] for node in self._graphs[LOGITS].nodes if node.op == "output")

    def producer(self, stage: str) -> nn.Module | None:
        """The layer whose output is the tensor at ``Tap(part, stage)``; None where a plain function made it."""
        result = next(node.args[0] for node in self._graphs[stage].nodes if node.op == "output")
        last = result[0] if isinstance(result, tuple) else result
        assert isinstance(last, fx.Node)
        return self.network.get_submodule(str(last.target)) if last.op == "call_module" else None

    def rounded(self, stage: str, tensor: Tensor) -> Tensor:
        """A tensor through the activation quantizer that ends a stage; as it is where the stage ends in none."""
        quantizer = self.producer(stage)
        if quantizer is None or not hasattr(quantizer, "act_quant"):
            return tensor
        found: Tensor = quantizer(tensor)
        return found

    def in_interval(self, stage: str, tensor: Tensor) -> Tensor:
        """A tensor in shares of the interval of the activation quantizer that ends a stage: lowest level 0, highest 1.

        As it is where the stage ends in none. The interval is a constant here: no gradient reaches its quantizer.
        """
        core = getattr(getattr(self.producer(stage), "act_quant", None), "core", None)
        if core is None:
            return tensor
        scale = core.scale().detach()
        share: Tensor = (tensor / scale + (core.zero() - core.low)) / (core.high - core.low)
        return share

    def forward(self, images: Tensor) -> Tensor:
        flow: Flow = (images,)
        for stage in self._graphs:
            flow = self.advance(stage, flow)
        return flow[0]


def cut(network: nn.Module, at: Mapping[str, str] | Sequence[str]) -> Staged:
    """The network in stages that end behind the named modules; whatever follows is the stage ``logits``.

    ``at`` maps stage names to module paths in the order of the network (``{"middle": "features.6"}``); a plain list
    names the stages by their paths. Outputs are identical to the network's, in training and in evaluation.
    Raises NetworkError: unknown path (with a suggestion), a module that is called more than once, wrong order.
    """
    paths = dict(at) if isinstance(at, Mapping) else {path: path for path in at}
    module = network if isinstance(network, fx.GraphModule) else trace(network)
    nodes = list(module.graph.nodes)
    ends = {stage: _end(module, nodes, path) for stage, path in paths.items()}
    order = list(ends.values())
    if order != sorted(set(order)):
        found = ", ".join(sorted(paths.values(), key=lambda p: ends[next(s for s in paths if paths[s] == p)]))
        raise NetworkError(
            f"cut at {', '.join(paths.values())}: in this network the order is {found}", key="match.wrong-order"
        )
    _unpair(module, [nodes[end] for end in order])
    bounds = [-1, *order, len(nodes) - 2]
    names = (*paths, LOGITS)
    return Staged(module, {n: _piece(nodes, a, b) for n, a, b in zip(names, bounds, bounds[1:], strict=False)})


def _unpair(module: fx.GraphModule, ends: Sequence[fx.Node]) -> None:
    """A batch norm that ends a stage is read by taps too, so it cannot be fused with its quantizer (`fused_batch_norm`)."""
    read = [module.get_submodule(str(node.target)) for node in ends if node.op == "call_module"]
    for reader in module.modules():
        pair = getattr(reader, "norm", None)
        if isinstance(pair, tuple) and any(norm is layer for norm in pair for layer in read):
            reader.norm = ()  # type: ignore[assignment]


def _end(module: fx.GraphModule, nodes: Sequence[fx.Node], path: str) -> int:
    inside = [i for i, node in enumerate(nodes) if path in where_from(node) or _calls(node, path)]
    if not inside:
        known = sorted({p for node in nodes for p in where_from(node)})
        shown = ", ".join(p for p in known if p.count(".") <= path.count(".")) or ", ".join(known)
        raise NetworkError(
            f"no module {path!r} to cut at{nearest(path, known)}; there are: {shown}", key="match.unknown-module"
        )
    times = _times(nodes, inside, path)
    if times > 1:
        raise NetworkError(
            f"module {path!r} is called {times} times; cut at the block around one of the calls",
            key="match.called-more-than-once",
        )
    return inside[-1]


def _times(nodes: Sequence[fx.Node], inside: Sequence[int], path: str) -> int:
    """How often a layer is called; 0 for a block. Of a quantized network each call of a ReLU is a layer of its own."""
    calls = sum(_calls(nodes[i], path) for i in inside)
    own = {nodes[i] for i in inside}
    begun = sum(own.isdisjoint(node.all_input_nodes) for node in own)
    return max(calls, begun) if calls else 0


def _calls(node: fx.Node, path: str) -> bool:
    return node.op == "call_module" and str(node.target) == path


def _piece(nodes: Sequence[fx.Node], after: int, upto: int) -> fx.Graph:
    """Nodes ``after+1 .. upto`` as a graph of its own: takes the flow, returns the flow."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in _alive(nodes, after) if after >= 0 else []:
        copies[node] = graph.placeholder(node.name)
    for node in nodes[after + 1 : upto + 1]:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    if upto == len(nodes) - 2:
        graph.output(fx.node.map_arg(nodes[-1].args[0], lambda n: copies[n]))
    else:
        graph.output(tuple(copies[node] for node in _alive(nodes, upto)))
    return graph


def _alive(nodes: Sequence[fx.Node], upto: int) -> list[fx.Node]:
    """What a later stage still reads after node ``upto``, that node itself first."""
    later = set(nodes[upto + 1 :])
    return [nodes[upto], *(n for n in nodes[:upto] if later & n.users.keys())]
