"""Views of a quantized network: its own layers, with other bits for activations or another network's mode of batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qkd.quantizers.fake_quant import StoredScaleQuant
from qkd.quantizers.injectors import ActivationProxy
from qkd.quantizers.lsq_plus import ShiftedQuant
from qkd.quantizers.round_to_grid import round_to_grid

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def layers_seen(
    network: fx.GraphModule,
    trained: fx.GraphModule,
    activations: int | None = None,
    share: float = 1.0,
    dropout: float = 0.0,
) -> fx.GraphModule:
    """The graph of ``network`` over its own layers, of which these compute something else; it holds nothing of its own.

    * Batch norms normalise with the statistics of the batch where those of ``trained``, a network of the same graph, are
      in training, and leave the running statistics as they are. Otherwise they use the running ones.
    * Quantizers of tensors with fewer than ``activations`` bits round to that many with the probability ``share``, drawn
      for each of them in each forward pass (`DrawnBits`).
    * With ``dropout`` each entry of a quantized activation is zero with that probability, and the others grow by
      ``1 / (1 - dropout)``, where the layer of ``trained`` is in training (`Dropped`).
    """
    layers: dict[str, Any] = {}
    for node in network.graph.nodes:
        path = str(node.target)
        if node.op == "get_attr":
            layers[path] = _attribute(network, path)
        elif node.op == "call_module":
            layer = network.get_submodule(path)
            if isinstance(layer, _BatchNorm):
                layers[path] = BatchStatistics(layer, trained.get_submodule(path))
            elif activations is not None and isinstance(getattr(layer, "act_quant", None), ActivationProxy):
                layers[path] = DrawnBits(layer, activations, share)
            else:
                layers[path] = layer
            if dropout and isinstance(getattr(layer, "act_quant", None), ActivationProxy):
                layers[path] = Dropped(layers[path], trained.get_submodule(path), dropout)
    return fx.GraphModule(layers, network.graph)


def _attribute(network: nn.Module, path: str) -> Any:
    home, _, name = path.rpartition(".")
    return getattr(network.get_submodule(home), name)


class BatchStatistics(nn.Module):
    """A batch norm that another network's decides the mode of, and that leaves its running statistics as they are."""

    is_leaf = True

    def __init__(self, norm: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.layers: tuple[Any, Any] = (norm, trained)  # in a tuple, so that they are no submodules of this layer

    def forward(self, x: Tensor) -> Tensor:
        norm, trained = self.layers
        buffers = {name: norm._buffers[name] for name in STATISTICS} if trained.training else {}
        training = norm.training
        norm._buffers.update(dict.fromkeys(buffers))  # torch then takes the batch's, and stores nothing
        norm.training = trained.training
        try:
            result: Tensor = norm(x)
        finally:
            norm._buffers.update(buffers)
            norm.training = training
        return result


class Dropped(nn.Module):
    """A quantizer of activations with dropout behind it while another network's layer is in training.

    Drawn from torch's global random state, which checkpoints keep. Source of dropout as what makes a teacher many: Aslam et
    al., SSD, ECML-PKDD 2025.
    """

    is_leaf = True

    def __init__(self, layer: nn.Module, trained: nn.Module, probability: float) -> None:
        super().__init__()
        self.layers: tuple[Any, Any] = (layer, trained)  # in a tuple, so that they are no submodules of this layer
        self.probability = probability

    @property
    def act_quant(self) -> Any:
        """The proxy of the quantizer that is seen."""
        return self.layers[0].act_quant

    def forward(self, x: Tensor) -> Tensor:
        layer, trained = self.layers
        return F.dropout(layer(x), self.probability, training=trained.training)


class DrawnBits(nn.Module):
    """A quantizer that rounds to ``bits`` instead of its own with the probability ``share``, over the range it has.

    Drawn from torch's global random state, which checkpoints keep; nothing is drawn where the quantizer has as many bits, or
    rounding is off.
    """

    is_leaf = True

    def __init__(self, layer: nn.Module, bits: int, share: float) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple, so that it is no submodule of this one
        self.bits, self.share = bits, share

    @property
    def act_quant(self) -> Any:
        """The proxy of the quantizer that is seen."""
        return self.layer[0].act_quant

    def forward(self, x: Tensor) -> Tensor:
        proxy = self.act_quant
        if proxy.disable_quant or proxy.core.bits >= self.bits or float(torch.rand(())) >= self.share:
            own: Tensor = self.layer[0](x)
            return own
        return on_finer_grid(proxy.core, x, self.bits)


def on_finer_grid(core: StoredScaleQuant, x: Tensor, bits: int) -> Tensor:
    """``x`` rounded to ``2 ** bits`` levels over the range of a quantizer, in its shape and type. No gradient for the scale.

    ``s_H = s (high - low) / (2^bits - 1)``, and ``low_H = round(low s / s_H)``: the range stays, to half of the finer step
    where zero, which is always a level, does not divide it (never for a range that begins at zero). Source: Boo et al.,
    SPEQ, AAAI 2021. Raises SchemeError where the quantizer was never calibrated.
    """
    core.require_calibration()
    top = 2**bits - 1
    below = core.low - int(core.zero()) if isinstance(core, ShiftedQuant) else core.low
    finer = top / (core.high - core.low)
    low = round(below * finer)
    return round_to_grid(x, core.scale() / finer, low, low + top, 1.0, compiled=core.compiled)[0]
