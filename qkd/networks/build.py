"""A float network from its name: one of ours, torchvision's, timm's, or a file's."""

from __future__ import annotations

import inspect
import typing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from qkd.errors import NetworkError, QkdError, nearest
from qkd.networks import NETWORKS
from qkd.options import Options, is_user_code, load_user_code, options_from, suggestion

CLASSES = ("classes", "num_classes")
CHANNELS = ("channels", "in_channels", "in_chans")
PLAIN = (bool, int, float, str)  # settings; what else torchvision takes are layers and tables


def build(name: str, *, classes: int, channels: int = 3, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A float network with fresh weights, (batch, channels, H, W) -> (batch, classes).

    ``name`` is a key of NETWORKS, ``torchvision:<name>``, ``timm:<name>`` or ``./file.py:Name``. Raises NetworkError
    for a name that does not exist, an option that does not fit, and anything that is not an nn.Module.
    """
    options = dict(options or {})
    _refuse_unknown(name, options)
    family, _, rest = name.partition(":")
    if is_user_code(name):
        network = _own(name, classes, channels, options)
    elif family == "torchvision":
        network = _torchvision(rest, classes, channels, options)
    elif family == "timm":
        network = _call(name, _timm().create_model, rest, **options, num_classes=classes, in_chans=channels)
        _separate(network)
    else:
        network = _call(name, NETWORKS[name], **options, classes=classes, channels=channels)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name}: gave {type(network).__name__}, not a torch.nn.Module")
    return network


def options_of(name: str) -> Options:
    """The options a recipe may give for that network. Raises NetworkError for a name that does not exist."""
    family, _, rest = name.partition(":")
    if is_user_code(name):
        return options_from(_callable(name), leave=(*CLASSES, *CHANNELS), keyword_only=False)
    if family == "torchvision":
        return _torchvision_options(_torchvision_builder(rest))
    if family == "timm":
        _timm_name(rest)
        return Options(others=True, complete=False)
    if name not in NETWORKS:
        forms = ("torchvision:<name>", "timm:<name>", "./file.py:Name")
        raise NetworkError(f"no network {name!r}{suggestion(name, [*NETWORKS, *forms])}")
    return options_from(NETWORKS[name], leave=("classes", "channels"))


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    for option, wrong in options_of(name).unknown(options).items():
        raise NetworkError(f"{name}: no option {option!r}{wrong}")


def _own(name: str, classes: int, channels: int, options: dict[str, Any]) -> Any:
    function = _callable(name)
    parameters = inspect.signature(function).parameters
    given = {word: classes for word in CLASSES if word in parameters}
    given |= {word: channels for word in CHANNELS if word in parameters}
    return _call(name, function, **given, **options)


def _callable(name: str) -> Callable[..., Any]:
    function = load_user_code(name, error=NetworkError)
    if not callable(function):
        raise NetworkError(f"{name}: is {type(function).__name__}, not something to call")
    return function


def _call(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the function gives; what it does not accept is the user's mistake and named as such."""
    try:
        return function(*arguments, **options)
    except QkdError:
        raise
    except Exception as error:  # it may be code of the user's own, which may do anything
        raise NetworkError(f"{name}: cannot be built: {type(error).__name__}: {error}") from error


def _torchvision(name: str, classes: int, channels: int, options: dict[str, Any]) -> Any:
    builder = _torchvision_builder(name)
    if channels != 3:
        raise NetworkError(
            f"torchvision:{name}: takes images of 3 channels, the data has {channels}; "
            f"choose data with 3 channels or a network of {', '.join(NETWORKS)}"
        )
    if name in ("inception_v3", "googlenet"):  # one output and no warning about a slow start
        options = {"aux_logits": False, "init_weights": True, **options}
    return _call(f"torchvision:{name}", builder, weights=None, **options, num_classes=classes)


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise NetworkError(f"torchvision has no network {name!r}{nearest(name, known)}; it has {len(known)} others")
    return models.get_model_builder(name)


def _torchvision_options(builder: Callable[..., nn.Module]) -> Options:
    """The plain settings of the class the builder makes: builders pass on what they do not know."""
    made = typing.get_type_hints(builder).get("return", nn.Module)
    known = options_from(made, leave=CLASSES, keyword_only=False)
    plain = {word: p for word, p in known.parameters.items() if isinstance(p.default, PLAIN)}
    return Options(plain, others=known.others, complete=False)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise NetworkError("timm: is not installed; pip install 'qkd[timm]'") from error
    return timm


@final
class AtLeast(nn.AdaptiveAvgPool2d):
    """Images of at least this height and width: smaller ones are pooled up to it, others stay as they are."""

    is_leaf = True

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least

    def forward(self, images: Tensor) -> Tensor:
        height, width = (max(self.least, size) for size in images.shape[2:])
        small = images.shape[2:] != (height, width)
        return F.adaptive_avg_pool2d(images, (height, width)) if small else images


def _separate(network: Any) -> None:
    """timm's own layers as torch's: batch norm with an activation inside as the two, its Linear as a plain one, VGG's head.

    So that batch norm is folded into the layer before it as any other, and every layer is seen. Parameters are kept; those
    of such a batch norm gain ``norm`` in their names.
    """
    from timm.layers import BatchNormAct2d
    from timm.layers import Linear as Cast
    from timm.models.vgg import ConvMlp

    for path, layer in list(network.named_modules()):
        if type(layer) is Cast:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.register_parameter("weight", layer.weight)
            plain.register_parameter("bias", layer.bias)
            network.set_submodule(path, plain.train(layer.training))
        elif type(layer) is BatchNormAct2d:
            norm = nn.BatchNorm2d(
                layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
            )
            norm.load_state_dict(layer.state_dict())
            pieces = {"norm": norm.train(layer.training), "drop": layer.drop, "act": layer.act}
            network.set_submodule(path, nn.Sequential(OrderedDict(pieces)))
        elif type(layer) is ConvMlp:
            parts = {"pool": AtLeast(layer.input_kernel_size), **dict(layer.named_children())}
            network.set_submodule(path, nn.Sequential(OrderedDict(parts)))


def _timm_name(name: str) -> None:
    timm = _timm()
    if not timm.is_model(name):
        raise NetworkError(f"timm has no network {name!r}{nearest(name, timm.list_models())}")
