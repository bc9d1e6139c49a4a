"""Float weights of a file into a network: which of the file's groups of tensors, and which prefixes of names, belong to it.

Trainers wrap a network (DDP, torch.compile, Lightning, averages), and each wrapper puts a word into the names of its tensors.
The group and the prefix under which most of the network's own names are found are taken, and named.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qkd.errors import NetworkError, nearest
from qkd.networks.tracing import trace
from qkd.storage.weights_file import StoredTensors, read_tensors

WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Words that DataParallel, torch.compile, Fabric, FSDP and activation checkpointing put into names, anywhere."""
USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "state_dict_ema", "model_ema", *WRAPPERS)
"""Keys and prefixes of the network that a script trains, taken where a file has several networks that fit."""
AVERAGED = re.compile(r"(^|_|\.)(ema|swa|avg|averaged?)(_|\.|$)")
COUNTER = "num_batches_tracked"  # files from before torch 0.4 lack it, and no output depends on it
BESIDE = re.compile(r"(^|\.)(n_averaged|_extra_state|total_ops|total_params)$|^(AuxLogits|aux1|aux2)\.")
"""Tensors of averages, of profilers, and of torchvision's auxiliary classifiers, which are left out."""
DENSE_LAYER = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in torchvision's files of DenseNets, which are older than its class."""
SHOWN = 3  # names that a message lists


@dataclass(frozen=True)
class LoadedWeights:
    """What was taken from a file: ``path`` of keys; ``without``: what was removed from names, and ``added`` to them.

    ``others``: places of other weights in the file that fit as well. ``precisions``: those of the file beside float32.
    """

    path: tuple[str, ...]
    without: Sequence[str] = ()
    added: str = ""
    others: Sequence[str] = ()
    left_out: Sequence[str] = ()
    fresh: Sequence[str] = ()
    precisions: Sequence[str] = ()

    def __str__(self) -> str:
        parts = [f"weights at {'.'.join(self.path)}" if self.path else "weights"]
        parts += [f"not those at {_some(self.others)}"] * bool(self.others)
        parts += [f"without {' and '.join(self.without)} in their names"] * bool(self.without)
        parts += [f"with {self.added} before their names"] * bool(self.added)
        parts += [f"stored as {', '.join(self.precisions)}"] * bool(self.precisions)
        parts += [f"left out: {_some(self.left_out)}"] * bool(self.left_out)
        parts += [f"left fresh: {_some(self.fresh)}"] * bool(self.fresh)
        return ", ".join(parts)


@dataclass
class _Match:
    """A group of a file seen under a prefix; ``found``: own name of the network -> name in the file."""

    group: StoredTensors
    prefix: str
    added: str = ""
    found: dict[str, str] = field(default_factory=dict)
    same_shape: int = 0

    @property
    def rank(self) -> tuple[int, int, bool, bool]:
        """The larger, the better: tensors found, of the same shape, averaged, under a usual name."""
        words = [*self.group.path, *self.prefix.split(".")]
        averaged = AVERAGED.search(".".join(words)) is not None
        return len(self.found), self.same_shape, averaged, all(word in ("", *USUAL) for word in words)

    @property
    def place(self) -> str:
        """The keys and the prefix, as one dotted word."""
        return ".".join((*self.group.path, self.prefix)).rstrip(".")


_Choice = tuple[_Match, list[str]]


class Names:
    """How the tensors of a network may be called in a file.

    ``known``: a name without the words of wrappers -> the network's own names, each with the prefix that the file then lacks
    (a network around the one that was trained). Layers that were replaced when the network was built
    (``checkpoint_names``) have their earlier name too.
    """

    def __init__(self, network: nn.Module, own: Collection[str]) -> None:
        words = [name.split(".") for name in own]
        self.wrappers = [word for word in WRAPPERS if not any(word in each for each in words)]
        levels = zip(*(each[:-1] for each in words), strict=False)
        around = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        replaced: Mapping[str, str] = getattr(network, "checkpoint_names", {})
        self.known: dict[str, list[tuple[str, str]]] = {}
        for name in own:
            path, _, last = name.rpartition(".")
            for spelling in {name, f"{replaced.get(path, path)}.{last}".lstrip(".")}:
                for count in range(len(around) + 1):
                    added = "".join(f"{word}." for word in around[:count])
                    self.known.setdefault(spelling.removeprefix(added), []).append((added, name))

    def plain(self, name: str) -> str:
        """A name of a file without the words of wrappers that the network itself does not have."""
        name = DENSE_LAYER.sub(r"\1\2", name)
        return ".".join(word for word in name.split(".") if word not in self.wrappers)

    def removed(self, found: Collection[str]) -> list[str]:
        """The words of wrappers that stand in names of a file."""
        words = {word for name in found for word in name.split(".")}
        return [f"{word}." for word in self.wrappers if word in words]


def load_checkpoint(network: nn.Module, path: Path, *, fresh_head: bool = False) -> LoadedWeights:
    """Load float weights from a file of safetensors or of torch.save, without executing anything from it.

    Averaged weights are taken before others, as timm does. With ``fresh_head`` the last layer (of another number of
    classes) keeps its weights. Raises NetworkError naming the first missing, unexpected or differently shaped tensors.
    """
    own = network.state_dict()
    names = Names(network, own)
    match, others = _best(path, own, names, read_tensors(path))
    head = _head(network) if fresh_head else []
    stored = {name: match.group.tensors[word] for name, word in match.found.items() if name not in head}
    missing = [name for name in own if name not in (*match.found, *head) and not name.endswith(COUNTER)]
    left_out, unknown = _rest(match, names, head)
    _require_names(path, own, missing, unknown)
    _require_shapes(path, own, stored)
    _require_numbers(path, own, stored)
    load_state(network, {**own, **stored})
    kinds = {str(each.dtype).removeprefix("torch.") for each in stored.values() if each.is_floating_point()}
    words = [*([match.prefix] if match.prefix else []), *names.removed(match.found.values())]
    return LoadedWeights(match.group.path, words, match.added, others, left_out, head, sorted(kinds - {"float32"}))


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all tensors of a network by name. A network that reads the version of its state (MNASNet) finds its own there."""
    versioned: Any = OrderedDict(state)
    versioned._metadata = getattr(network.state_dict(), "_metadata", None)
    network.load_state_dict(versioned)


def _best(path: Path, own: Mapping[str, Tensor], names: Names, groups: Sequence[StoredTensors]) -> _Choice:
    """The group and prefix that fit best, and the places of others that fit as well.

    Raises NetworkError where a file has the network more than once and nothing says which is meant.
    """
    found = [match for group in groups for match in _matches(group, own, names)]
    if not found:
        shown = _some([name for group in groups for name in group.tensors])
        raise NetworkError(
            f"start_from: {path}: none of its tensors ({shown}) has a name of the network's ({_some(list(own))})",
            key="start_from.other-tensors",
        )
    best = max(found, key=lambda match: match.rank)
    equal = [
        each
        for each in found
        if each.rank[:2] == best.rank[:2] and (each.group, each.found) != (best.group, best.found)
    ]
    if places := [each.place for each in equal if each.rank == best.rank]:
        places = [best.place, *places]
        raise NetworkError(
            f"start_from: {path}: holds {len(places)} networks that fit: {_some(places)}; write the one that is meant to a "
            f"file of its own",
            key="start_from.several-networks",
        )
    return best, [each.place for each in equal]


def _matches(group: StoredTensors, own: Mapping[str, Tensor], names: Names) -> list[_Match]:
    """The group under every prefix behind which it has a name of the network."""
    found: dict[tuple[str, str], _Match] = {}
    for word, tensor in group.tensors.items():
        parts = names.plain(word).split(".")
        for at in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:at])
            for added, name in names.known.get(".".join(parts[at:]), ()):
                match = found.setdefault((prefix, added), _Match(group, prefix, added))
                match.found[name] = word
                match.same_shape += tensor.shape == own[name].shape
    return list(found.values())


def _rest(match: _Match, names: Names, head: Collection[str]) -> tuple[list[str], list[str]]:
    """The tensors of the group that the network does not take: those left out, and those that are unknown."""
    layers = tuple(f"{name.rpartition('.')[0]}.".removeprefix(match.added) for name in head)

    def is_unknown(word: str) -> bool:
        inner = names.plain(word).removeprefix(match.prefix)
        beside = not names.plain(word).startswith(match.prefix) or BESIDE.search(inner) is not None
        return not beside and not inner.startswith(layers)

    taken = set(match.found.values())
    rest = [word for word in match.group.tensors if word not in taken and not word.endswith(COUNTER)]
    return [word for word in rest if not is_unknown(word)], [word for word in rest if is_unknown(word)]


def _require_names(path: Path, own: Collection[str], missing: Sequence[str], unknown: Sequence[str]) -> None:
    if not missing and not unknown:
        return
    hint = nearest(missing[0], unknown) if missing else nearest(unknown[0], own)
    parts = [f"lacks {len(missing)} of {len(own)} tensors: {_some(missing)}"] * bool(missing)
    parts += [f"has {len(unknown)} that are unknown: {_some(unknown)}"] * bool(unknown)
    raise NetworkError(f"start_from: {path}: {', '.join(parts)}{hint}", key="start_from.other-tensors")


def _require_shapes(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises NetworkError naming the tensors of another shape; where only a last layer differs, with what to do."""
    other = [name for name, tensor in stored.items() if tensor.shape != own[name].shape]
    if not other:
        return
    each = [f"{n}: {tuple(stored[n].shape)} in the file, {tuple(own[n].shape)} in the network" for n in other]
    layers = {name.rpartition(".")[0] for name in other}
    rows = all(stored[n].shape[1:] == own[n].shape[1:] and own[n].ndim for n in other)
    remedy = ""
    if len(layers) == 1 and rows:
        before, now = len(stored[other[0]]), len(own[other[0]])
        remedy = f"; only {layers.pop()} differs, {before} classes for {now}: `start_head: fresh` leaves it untrained"
    raise NetworkError(
        f"start_from: {path}: {len(other)} of {len(own)} tensors have another shape: {_some(each, '; ')}{remedy}",
        key="start_from.other-shape",
    )


def _require_numbers(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    for name, tensor in stored.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise NetworkError(
                f"start_from: {path}: {name} is {tensor.dtype}, not float: are these the weights of a quantized network?",
                key="start_from.not-float",
            )
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise NetworkError(f"start_from: {path}: {name} is not finite", key="start_from.not-finite")


def _head(network: nn.Module) -> list[str]:
    """The names of the tensors of the classifier: the last layer with a matrix of weights on the way to the logits.

    Raises NetworkError where the logits come from several layers, or from a function that is no layer.
    """
    (node,) = (each for each in trace(network).graph.nodes if each.op == "output")
    while len(node.all_input_nodes) == 1 or node.target in ("view", "reshape"):
        node = node.all_input_nodes[0]
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        if any(parameter.ndim > 1 for parameter in layer.parameters()):
            return [f"{node.target}.{name}" for name in layer.state_dict()]
    raise NetworkError("start_head: fresh: the logits do not come from one layer", key="start_head.no-classifier")


def _some(names: Sequence[str], sign: str = ", ") -> str:
    more = f"{sign}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return sign.join(names[:SHOWN]) + more
