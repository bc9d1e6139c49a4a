"""EWGS's delta from the Hessian of the loss: how fast a gradient changes, relative to how large it is.

``delta = max(0, (Tr(H) / N) / G)`` for each quantizer: H is the Hessian of the loss over its N rounded numbers, G three
standard deviations of their gradients, both in units of the interval from the lowest to the highest level.

Source: Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021, section 3; the trace as Hutchinson
estimates it. Departures: the network is in evaluation mode, so that nothing but delta changes; other quantizers pass
derivatives straight through; the loss is the cross entropy with the labels, whatever other loss terms the network has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkd.quantizers.calibration import evaluating, nonempty
from qkd.quantizers.ewgs import ElementwiseScaling
from qkd.quantizers.fake_quant import FakeQuant, cores_of
from qkd.quantizers.inspection import quantizers

PROBES = 8
"""Random vectors for each quantizer and batch. On a small residual network they leave an error of a sixth, which the mean
over batches makes smaller; each costs a third of a training step. The authors' code takes up to fifty."""
Labelled = tuple[Tensor, Tensor]
Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
Shares = dict[str, list[Tensor]]
"""By the name of a quantizer, for each of its calls in a forward pass: its output as a share of its interval."""


def prepare_deltas(module: nn.Module, delta: str) -> None:
    """With ``delta`` "hessian", give every quantizer of EWGS a delta of its own, kept in the state dict."""
    for core in cores_of(module):
        if delta == "hessian" and isinstance(core, ElementwiseScaling):
            core.keep_own_delta()


def needs_delta(network: nn.Module) -> bool:
    """Whether any quantizer's delta is to be estimated."""
    return any(_has_own_delta(core) for core in cores_of(network))


def _has_own_delta(core: FakeQuant) -> bool:
    return isinstance(core, ElementwiseScaling) and core.delta is not None


def estimate_deltas(network: nn.Module, batches: Iterable[Labelled], seed: int) -> dict[str, float]:
    """Set delta of every quantizer that has its own, from (images, labels). -> the new values by quantizer

    Nothing else of the network changes, nor do the global random numbers. Raises DataError where there is no batch.
    """
    cores = {name: core for name, core in quantizers(network) if _has_own_delta(core)}
    total, count = dict.fromkeys(cores, 0.0), 0
    generator = torch.Generator().manual_seed(seed)
    with evaluating(network), torch.enable_grad():
        for images, labels in nonempty(batches, "estimate_deltas"):
            count += 1
            with _straight_through(network, cores) as shares_of:
                loss = F.cross_entropy(network(images), labels)
            for name, ratio in _ratios(loss, shares_of, generator).items():
                total[name] += ratio
    found = {name: max(0.0, ratio / count) for name, ratio in total.items()}
    for name, core in cores.items():
        assert isinstance(core, ElementwiseScaling) and core.delta is not None
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
            (times_hessian,) = torch.autograd.grad(
                gradient, tensor, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total[index] += float((vector * times_hessian).sum())
    return total / probes


def _ratios(loss: Tensor, shares_of: Shares, generator: torch.Generator) -> dict[str, float]:
    """(Tr(H) / N) / G of each quantizer; 0 where no gradient reaches it."""
    names = [name for name, shares in shares_of.items() for _ in shares]
    tensors = [share for shares in shares_of.values() for share in shares]
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    found = traces(gradients, tensors, PROBES, generator)
    ratios = {}
    for name, shares in shares_of.items():
        own = [i for i, other in enumerate(names) if other == name]
        spread = 3 * float(torch.cat([gradients[i].detach().reshape(-1) for i in own]).std(correction=0))
        trace = float(found[own].sum()) / sum(share.numel() for share in shares)
        ratios[name] = trace / spread if spread > 0 else 0.0
    return ratios


@contextlib.contextmanager
def _straight_through(network: nn.Module, cores: dict[str, FakeQuant]) -> Iterator[Shares]:
    """Every quantizer rounds as before and passes gradients on unchanged inside its interval, by operations that can be
    differentiated twice. Yields what those in ``cores`` compute meanwhile."""
    names = {core: name for name, core in cores.items()}
    shares_of: Shares = {}

    def straight(core: FakeQuant, rounded: Quantize, x: Tensor) -> tuple[Tensor, Tensor]:
        y, scale = (part.detach() for part in rounded(x))
        zero = core.zero().detach()
        low, width = (core.low - zero) * scale, (core.high - core.low) * scale
        passed = x * ((x > low) & (x < low + width))
        share = (passed + (y - passed).detach()) / width
        if core in names:
            shares_of.setdefault(names[core], []).append(share.requires_grad_() if share.is_leaf else share)
        return share * width, scale

    changed = list(cores_of(network))
    for core in changed:
        core.quantize = partial(straight, core, core.quantize)  # type: ignore[method-assign]
    try:
        yield shares_of
    finally:
        for core in changed:
            del core.quantize
