"""EWGS's delta from the Hessian of the loss: how fast a gradient changes, beside how large it is.

``delta = max(0, (Tr(H) / N) / G)`` for each quantizer: H is the Hessian of the loss over its N rounded numbers, G three
standard deviations of their gradients, both in units of the interval from the lowest to the highest level.

Source: Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021, section 3; the trace as Hutchinson
estimates it. Departures: the network is in evaluation mode, so that nothing but delta changes; other quantizers pass
derivatives straight through; the loss is the cross entropy with the labels, whatever else teaches the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.errors import DataError
from qkd.quantizers.calibrate import evaluating
from qkd.quantizers.ewgs import EwgsQuant
from qkd.quantizers.fake_quant import FakeQuant
from qkd.quantizers.inspection import quantizers

PROBES = 8
"""Random vectors for each quantizer and batch. On a small residual network they leave an error of a sixth, which the mean
over batches makes smaller; each costs a third of a training step. The authors' code takes up to fifty."""
Labelled = tuple[Tensor, Tensor]
Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]


def prepare_deltas(module: nn.Module, delta: str) -> None:
    """Give every quantizer of EWGS a delta of its own, kept in the state dict, where it is to be estimated."""
    for core in (core for core in module.modules() if isinstance(core, EwgsQuant)):
        if delta == "hessian":
            core.own_delta()


def needs_delta(network: nn.Module) -> bool:
    """Whether any quantizer's delta is to be estimated."""
    return any(core.delta is not None for core in network.modules() if isinstance(core, EwgsQuant))


def estimate_deltas(network: nn.Module, batches: Iterable[Labelled], seed: int) -> dict[str, float]:
    """Set delta of every quantizer that asks for it, from (images, labels). -> the new values by quantizer

    Nothing else of the network changes, nor do the global random numbers. Raises DataError where there is no batch.
    """
    cores = {name: c for name, c in quantizers(network) if isinstance(c, EwgsQuant) and c.delta is not None}
    total, count = dict.fromkeys(cores, 0.0), 0
    generator = torch.Generator().manual_seed(seed)
    with evaluating(network), torch.enable_grad():
        for images, labels in batches:
            count += 1
            with _straight_through(network, cores) as seen:
                loss = F.cross_entropy(network(images), labels)
            for name, ratio in _ratios(loss, seen, generator).items():
                total[name] += ratio
    if not count:
        raise DataError("estimate_deltas: there is no batch; give at least one")
    found = {name: max(0.0, ratio / count) for name, ratio in total.items()}
    for name, core in cores.items():
        assert core.delta is not None
        core.delta.fill_(found[name])
    return found


def traces(gradients: Sequence[Tensor], tensors: Sequence[Tensor], probes: int, generator: torch.Generator) -> Tensor:
    """Hutchinson's estimate of the trace of each tensor's own block of the Hessian; (tensors,).

    gradients: of a scalar by each tensor, made with ``create_graph``. The random vectors have the entries -1 and 1.
    Source: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990.
    """
    total = torch.zeros(len(tensors), dtype=torch.float64)
    for index, (gradient, tensor) in enumerate(zip(gradients, tensors, strict=True)):
        for _ in range(probes):
            vector = 2 * torch.randint(2, tensor.shape, generator=generator).to(tensor) - 1
            (product,) = torch.autograd.grad(
                gradient, tensor, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total[index] += float((vector * product).sum())
    return total / probes


class _Seen:
    """What each quantizer gave in one forward pass: shares of its interval, from which its output was made."""

    def __init__(self) -> None:
        self.shares: dict[str, list[Tensor]] = {}


def _ratios(loss: Tensor, seen: _Seen, generator: torch.Generator) -> dict[str, float]:
    """(Tr(H) / N) / G of each quantizer; 0 where no gradient reaches it."""
    names = [name for name, shares in seen.shares.items() for _ in shares]
    tensors = [share for shares in seen.shares.values() for share in shares]
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    found = traces(gradients, tensors, PROBES, generator)
    ratios = {}
    for name, shares in seen.shares.items():
        own = [i for i, other in enumerate(names) if other == name]
        spread = 3 * float(torch.cat([gradients[i].detach().reshape(-1) for i in own]).std(correction=0))
        trace = float(found[own].sum()) / sum(share.numel() for share in shares)
        ratios[name] = trace / spread if spread > 0 else 0.0
    return ratios


@contextlib.contextmanager
def _straight_through(network: nn.Module, cores: dict[str, EwgsQuant]) -> Iterator[_Seen]:
    """Every quantizer rounds as ever and passes gradients on unchanged inside its interval, by operations that can be
    differentiated twice; what those in ``cores`` give is kept."""
    seen, names = _Seen(), {core: name for name, core in cores.items()}

    def straight(core: FakeQuant, rounded: Quantize, x: Tensor) -> tuple[Tensor, Tensor]:
        y, scale = (part.detach() for part in rounded(x))
        zero = core.zero().detach()
        low, width = (core.low - zero) * scale, (core.high - core.low) * scale
        passed = x * ((x > low) & (x < low + width))
        share = (passed + (y - passed).detach()) / width
        if core in names:
            seen.shares.setdefault(names[core], []).append(share.requires_grad_() if share.is_leaf else share)
        return share * width, scale

    changed = [core for core in network.modules() if isinstance(core, FakeQuant)]
    for core in changed:
        core.quantize = partial(straight, core, core.quantize)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for core in changed:
            del core.quantize
