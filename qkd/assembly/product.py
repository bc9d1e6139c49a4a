"""Product: what is deployed, as one module, and the quantization of its heads."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkd.distill.heads import Head
from qkd.distill.module_map import ModuleMap
from qkd.distill.plan import Learner, Plan
from qkd.distill.stages import Flow, Staged
from qkd.distill.taps import Outputs, Tap
from qkd.errors import SchemeError
from qkd.networks.batch_norm import copied_module
from qkd.networks.tracing import is_leaf, trace
from qkd.quantizers import Scheme, insert, nearest_layer, quantizers
from qkd.quantizers.node_kinds import kinds

HEADS = "heads."
"""Prefix of the names of the heads' layers, in the product, in its exported file and in a scheme's overrides."""


class Deployed(nn.Module):
    """The networks that a head reads, up to the last stage read, the heads before it, itself, and its borrowed classifier."""

    def __init__(self, plan: Plan, networks: ModuleMap[Staged], heads: ModuleMap[Head]) -> None:
        super().__init__()
        chain = plan.deployed()
        read = {tap for head in chain for tap in head.reads if tap.part in networks}
        owners = {head.via.part for head in chain if head.via is not None}
        self.product = plan.product
        self.upto = {
            part: max(networks[part].names.index(tap.stage) for tap in read if tap.part == part)
            for part in sorted({tap.part for tap in read})
        }
        self.networks: ModuleMap[Staged] = ModuleMap({part: networks[part] for part in sorted({*self.upto, *owners})})
        self.heads: ModuleMap[Head] = ModuleMap({head.name: heads[head.name] for head in chain})

    def forward(self, images: Tensor) -> Tensor:
        outputs: Outputs = {}
        for part, last in self.upto.items():
            outputs |= _run(part, self.networks[part], images, last)
        for head in self.heads.values():
            outputs |= head.forward(outputs, self.networks)
        return outputs[Tap(self.product)]


def _run(part: str, network: Staged, images: Tensor, last: int) -> Outputs:
    outputs: Outputs = {}
    flow: Flow = (images,)
    for stage in network.names[: last + 1]:
        flow = network.advance(stage, flow)
        outputs[Tap(part, stage)] = flow[0]
    return outputs


def product_of(plan: Plan, networks: ModuleMap[Staged], heads: ModuleMap[Head]) -> nn.Module:
    """Images (B, C, H, W) -> logits (B, classes) as one traced module, with only the layers that this needs."""
    if plan.product in networks:
        return networks[plan.product].network
    deployed = Deployed(plan, networks, heads)
    modes = {module: module.training for module in deployed.modules()}
    traced = trace(deployed)
    for module, mode in modes.items():
        module.training = mode
    return traced


def quantized_heads(plan: Plan, networks: Mapping[str, Staged], scheme: Scheme) -> dict[str, Head]:
    """Copies of the plan's heads, those of the product quantized like the student; the others stay float.

    Their layers have the scheme's bits, the one that gives the product's logits those of the last layer. Overrides are
    patterns of their names in the product (``heads.as_teacher.*``); others must not be among them (`scheme_of_heads`). A
    classifier borrowed from a float network is quantized for the product and stays float for its owner; both share their
    weights. Raises SchemeError for overrides that match no layer of a head.
    """
    heads = {head.name: copied_module(head) for head in plan.heads}
    deployed = [heads[head.name] for head in plan.deployed()]
    for head in deployed:
        head.body = _with_joined_inputs(head, networks, heads)
        head.separate_inputs = True
        ends = head.name == plan.product and head.via is None
        head.body = insert(head.body, _scheme_behind(scheme, head.body, f"{HEADS}{head.name}.body.", ends=ends))
        if head.via is not None and not any(True for _ in quantizers(networks[head.via.part])):
            stage = networks[head.via.part].stage(head.via.stage)
            behind = _scheme_behind(scheme, stage, f"{HEADS}{head.name}.borrowed.", ends=True)
            head.borrowed = _share_weights(insert(stage, behind), stage)
    _refuse_unmatched(scheme.overrides, [name for head in deployed for name in _layers_of(head)])
    return heads


def scheme_of_heads(scheme: Scheme, network: nn.Module) -> Scheme:
    """The student's scheme with only those overrides that are meant for heads: ``heads.*``, matching no layer of the network."""
    return replace(scheme, overrides=_split(scheme, network)[1])


def scheme_of_network(scheme: Scheme, network: nn.Module) -> Scheme:
    """The student's scheme without the overrides that are meant for heads."""
    return replace(scheme, overrides=_split(scheme, network)[0])


def _split(scheme: Scheme, network: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    own: dict[str, str] = {}
    of_heads: dict[str, str] = {}
    layers = _layers(network)
    for pattern, bits in scheme.overrides.items():
        elsewhere = pattern.startswith(HEADS) and not fnmatch.filter(layers, pattern)
        (of_heads if elsewhere else own)[pattern] = bits
    return own, of_heads


def _layers(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, (nn.Conv2d, nn.Linear))]


def _layers_of(head: Head) -> list[str]:
    homes = {"body": head.body, "borrowed": head.borrowed}
    return [f"{HEADS}{head.name}.{home}.{name}" for home, module in homes.items() if module for name in _layers(module)]


def _refuse_unmatched(overrides: Iterable[str], names: Sequence[str]) -> None:
    unmatched = [pattern for pattern in overrides if not fnmatch.filter(names, pattern)]
    if not unmatched:
        return
    possible = f"there are {', '.join(names)}" if names else "this product has no heads with layers"
    listed = ", ".join(f"{pattern!r}{nearest_layer(pattern, names)}" for pattern in unmatched)
    raise SchemeError(f"overrides: no layer of a head is called {listed}; {possible}", key="scheme.no-such-head-layer")


def untrained_quantizers(plan: Plan, heads: Mapping[str, Head] | ModuleMap[Head]) -> tuple[str, ...]:
    """Prefixes of the names of those quantizers of the product that no phase trains. ``heads``: those of the ensemble."""
    found = []
    for head in plan.deployed():
        prefix = f"{HEADS}{head.name}."
        if Learner(head.name) not in plan.learners:
            found.append(prefix)
        elif heads[head.name].borrowed is not None:
            found.append(f"{prefix}borrowed.")
    return tuple(found)


def _scheme_behind(scheme: Scheme, module: nn.Module, prefix: str, *, ends: bool) -> Scheme:
    """The scheme for a module that stands behind a network: its first layer is not the first of all.

    ``prefix``: of the names of its layers in the product. ``ends``: its last layer gives the product's logits.
    """
    layers = _layers(module)
    bits = {"*": str(scheme)} if layers else {}
    if ends and layers:
        bits[layers[-1]] = f"w{scheme.last}a{scheme.last}"
    for pattern, given in scheme.overrides.items():
        bits |= {name: given for name in layers if fnmatch.fnmatch(prefix + name, pattern)}
    return replace(scheme, overrides=bits)


def _with_joined_inputs(head: Head, networks: Mapping[str, Staged], heads: Mapping[str, Head]) -> fx.GraphModule:
    """The body as one graph that takes a tensor per tap and joins them, so that insertion sees where its inputs meet.

    A tap on an unsigned grid goes through a ReLU: it changes nothing and tells insertion that there is no sign.
    """
    plain = nn.Sequential(head.body) if is_leaf(head.body) else head.body
    body = trace(plain)
    home = nn.ModuleDict({"body": body, "relu": nn.ReLU()})
    graph = fx.Graph()
    inputs = [graph.placeholder(f"input_{number}") for number in range(len(head.reads))]
    read = [
        graph.call_module("relu", (node,)) if _unsigned(tap, networks, heads) else node
        for node, tap in zip(inputs, head.reads, strict=True)
    ]
    first = graph.call_function(torch.cat, (read, 1)) if len(read) > 1 else read[0]
    copies: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        if node.op == "placeholder":
            copies[node] = first
        elif node.op == "output":
            graph.output(copies[node.args[0]])
        else:
            copies[node] = graph.node_copy(node, lambda each: copies[each])
            copies[node].meta = {}  # its module paths are those inside the body
            if node.op in ("call_module", "get_attr"):
                copies[node].target = f"body.{node.target}"
    return fx.GraphModule(home, graph)


def _unsigned(tap: Tap, networks: Mapping[str, Staged], heads: Mapping[str, Head]) -> bool:
    """Whether the tensor at a tap comes from a quantizer whose grid begins at zero."""
    if tap.part in heads:
        body = heads[tap.part].body
        return heads[tap.part].via is None and isinstance(body, fx.GraphModule) and _ends_unsigned(body)
    return tap.part in networks and _ends_unsigned(networks[tap.part].stage(tap.stage))


def _ends_unsigned(module: fx.GraphModule) -> bool:
    result = next(node for node in module.graph.nodes if node.op == "output").args[0]
    node = result[0] if isinstance(result, (tuple, list)) else result
    kind = kinds(module)
    while isinstance(node, fx.Node) and kind[node] in ("pass", "max"):
        node = node.all_input_nodes[0]
    layer = module.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None
    return hasattr(layer, "act_quant") and not layer.act_quant.is_signed  # type: ignore[union-attr]


def _share_weights(module: fx.GraphModule, owner: nn.Module) -> fx.GraphModule:
    """The module with the owner's own parameters in place of its copies, and the owner's batch norms with their statistics."""
    for path, layer in list(owner.named_modules()):
        if isinstance(layer, _BatchNorm):
            module.set_submodule(path, layer)
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            module.get_submodule(path).register_parameter(name, parameter)
    return module
