"""Building a float network by name: one of NETWORKS, of torchvision, of timm, or of a user's file."""

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
from qkd.options import Options, is_user_code, load_user_code, options_from, require_extra, suggestion

CLASSES = ("classes", "num_classes")  # names by which a user's network may take the number of classes
CHANNELS = ("channels", "in_channels", "in_chans")  # and the number of channels
SCALARS = (bool, int, float, str)  # types of the options offered; others of torchvision are layers and tables


def build(name: str, *, classes: int, channels: int = 3, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A float network with fresh weights, (batch, channels, H, W) -> (batch, classes).

    ``name`` is a key of NETWORKS, ``torchvision:<name>``, ``timm:<name>`` or ``./file.py:Name``. Raises NetworkError
    for a name that does not exist, an option that does not fit, and anything that is not an nn.Module.
    """
    options = dict(options or {})
    _refuse_unknown(name, options)
    family, _, rest = name.partition(":")
    if is_user_code(name):
        network = _build_user_network(name, classes, channels, options)
    elif family == "torchvision":
        network = _build_torchvision(rest, classes, channels, options)
    elif family == "timm":
        network = _call(name, _timm().create_model, rest, **options, num_classes=classes, in_chans=channels)
        _use_torch_layers(network)
    else:
        network = _call(name, NETWORKS[name], **options, classes=classes, channels=channels)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name}: gave {type(network).__name__}, not a torch.nn.Module", key="network.not-a-module")
    return network


def options_of(name: str) -> Options:
    """The options of a network that a recipe may set. Raises NetworkError for a name that does not exist."""
    family, _, rest = name.partition(":")
    if is_user_code(name):
        return options_from(_callable(name), leave=(*CLASSES, *CHANNELS), keyword_only=False)
    if family == "torchvision":
        return _torchvision_options(_torchvision_builder(rest))
    if family == "timm":
        _require_timm_name(rest)
        return Options(others=True, complete=False)
    if name not in NETWORKS:
        forms = ("torchvision:<name>", "timm:<name>", "./file.py:Name")
        raise NetworkError(f"no network {name!r}{suggestion(name, [*NETWORKS, *forms])}", key="network.unknown-name")
    return options_from(NETWORKS[name], leave=("classes", "channels"))


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    if why := why_no_weights(name, options):
        raise NetworkError(f"{name}: weights: {why}", key="network.weights")
    for option, wrong in options_of(name).unknown(options).items():
        raise NetworkError(f"{name}: no option {option!r}{wrong}", key="network.unknown-option")


def _build_user_network(name: str, classes: int, channels: int, options: dict[str, Any]) -> Any:
    function = _callable(name)
    parameters = inspect.signature(function).parameters
    given = {word: classes for word in CLASSES if word in parameters}
    given |= {word: channels for word in CHANNELS if word in parameters}
    return _call(name, function, **given, **options)


def _callable(name: str) -> Callable[..., Any]:
    function = load_user_code(name, error=NetworkError)
    if not callable(function):
        raise NetworkError(f"{name}: is {type(function).__name__}, not callable", key="network.not-callable")
    return function


def _call(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of the function. Raises NetworkError for any exception in it."""
    try:
        return function(*arguments, **options)
    except QkdError:
        raise
    except Exception as error:  # it may be the user's code, or reject the options in any way
        reason = f"{type(error).__name__}: {error}"
        raise NetworkError(f"{name}: cannot be built: {reason}", key="network.cannot-be-built") from error


def _build_torchvision(name: str, classes: int, channels: int, options: dict[str, Any]) -> Any:
    builder = _torchvision_builder(name)
    if channels != 3:
        raise NetworkError(
            f"torchvision:{name}: takes images of 3 channels, the data has {channels}; "
            f"choose data with 3 channels or a network of {', '.join(NETWORKS)}",
            key="network.channels",
        )
    if name in ("inception_v3", "googlenet"):  # a single output, and no warning about slow initialisation
        options = {"aux_logits": False, "init_weights": True, **options}
    return _call(f"torchvision:{name}", builder, weights=None, **options, num_classes=classes)


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise NetworkError(
            f"torchvision has no network {name!r}{nearest(name, known)}; it has {len(known)} others",
            key="network.unknown-name",
        )
    return models.get_model_builder(name)


def _torchvision_options(builder: Callable[..., nn.Module]) -> Options:
    """The scalar options of the class that the builder constructs, to which it passes its keyword arguments on."""
    network_class = typing.get_type_hints(builder).get("return", nn.Module)
    known = options_from(network_class, leave=CLASSES, keyword_only=False)
    plain = {word: p for word, p in known.parameters.items() if isinstance(p.default, SCALARS)}
    return Options(plain, others=known.others, complete=False)


def why_no_weights(name: str, options: Mapping[str, Any]) -> str:
    """Why torchvision's option ``weights`` is not taken, and how a recipe gets the same; empty if the options have none."""
    from torchvision import models

    family, _, rest = name.partition(":")
    if family != "torchvision" or options.get("weights") is None:
        return ""
    known = models.get_model_weights(_torchvision_builder(rest)).__members__
    word = str(options["weights"]).rpartition(".")[2]
    if word not in known:
        return f"{rest} has no weights {word!r}{suggestion(word, list(known))}"
    url = known[word].url
    start = f"`start_from: {url.rpartition('/')[2]}`, with `start_head: fresh` for another number of classes"
    return f"not an option, since nothing is downloaded: fetch {url} and write {start}"


def _timm() -> Any:
    return require_extra("timm", error=NetworkError)


@final
class MinSizePool(nn.AdaptiveAvgPool2d):
    """Enlarge (batch, C, H, W) to at least ``min_size`` rows and columns by adaptive pooling; larger inputs are unchanged."""

    is_leaf = True

    def __init__(self, min_size: int) -> None:
        super().__init__(min_size)
        self.min_size = min_size

    def forward(self, images: Tensor) -> Tensor:
        height, width = (max(self.min_size, size) for size in images.shape[2:])
        small = images.shape[2:] != (height, width)
        return F.adaptive_avg_pool2d(images, (height, width)) if small else images


def _use_torch_layers(network: Any) -> None:
    """Replace timm's own layers by torch's, in place: BatchNormAct2d by batch norm and activation, Linear, VGG's head.

    So batch norm is folded into the layer before it as in other networks, and every layer is in the graph. Parameters are
    kept; those of a BatchNormAct2d get ``norm`` in their names, and ``checkpoint_names`` of the network says what they are
    called in files of timm's: ``bn1.norm`` -> ``bn1``.
    """
    from timm.layers import BatchNormAct2d
    from timm.layers import Linear as Cast
    from timm.models.vgg import ConvMlp

    network.checkpoint_names = {}
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
            norm.load_state_dict(
                {name: each for name, each in layer.state_dict().items() if "." not in name}
            )  # not act's
            pieces = {"norm": norm.train(layer.training), "drop": layer.drop, "act": layer.act}
            network.set_submodule(path, nn.Sequential(OrderedDict(pieces)))
            network.checkpoint_names[f"{path}.norm"] = path
        elif type(layer) is ConvMlp:
            parts = {"pool": MinSizePool(layer.input_kernel_size), **dict(layer.named_children())}
            network.set_submodule(path, nn.Sequential(OrderedDict(parts)))


def _require_timm_name(name: str) -> None:
    timm = _timm()
    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        raise NetworkError(f"timm has no network {name!r}{near}", key="network.unknown-name")
