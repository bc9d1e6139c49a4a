"""Networks: what they compute, how large they are, where they come from, and the errors when they cannot be built."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from qkd.errors import NetworkError
from qkd.networks import NETWORKS
from qkd.networks.build import build, options_of
from qkd.networks.tracing import trace
from tests.support.refusals import Refused

OWN = """
import torch
from torch import nn

SIZE = 3

class Small(nn.Module):
    def __init__(self, num_classes, in_channels=1, depth: int = 2, activation=nn.ReLU):
        super().__init__()
        self.depth = depth
        self.conv = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, images):
        return self.conv(images).mean((2, 3))

def fixed():
    return nn.Flatten()

def nothing(*, classes):
    return None

def broken(*, classes):
    raise ValueError("no such width")

def unknown(*, classes):
    return undefined(classes)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "my_net.py"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32)])
def test_networks_give_logits_and_learn_everywhere(name: str, channels: int, size: int) -> None:
    network = build(name, classes=7, channels=channels, options={"width": 4})
    logits = network(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_trace_with_every_relu_used_once(name: str) -> None:
    network = build(name, classes=3, channels=1, options={"width": 4}).eval()
    graph = trace(network)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(graph(images), network(images))
    relus = [
        n.target
        for n in graph.graph.nodes
        if n.op == "call_module" and isinstance(graph.get_submodule(n.target), nn.ReLU)
    ]
    assert len(relus) == len(set(relus)) == sum(isinstance(m, nn.ReLU) for m in network.modules())
    assert not [n for n in graph.graph.nodes if n.op == "call_function" and "relu" in str(n.target)]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet8", 0.078),
        ("resnet14", 0.175),
        ("resnet20", 0.272),
        ("resnet26", 0.370),
        ("resnet32", 0.467),
        ("resnet44", 0.661),
        ("resnet56", 0.856),
        ("resnet110", 1.731),
        ("resnet18", 11.174),
    ],
)
def test_residual_networks_have_the_size_of_the_paper(name: str, millions: float) -> None:
    # He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M for 20, 32, 44, 56, 110 layers; shortcuts add less than 0.01M
    network = NETWORKS[name](classes=10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(wide) + 1 == int(name.removeprefix("resnet"))


def test_four_times_as_wide_as_in_the_distillation_benchmarks() -> None:
    # ResNet-8x4 and ResNet-32x4 of RepDistiller: 1.23M and 7.43M parameters, a first convolution of 32 channels
    sizes = [build(n, classes=100, channels=3, options={"width": 64, "stem": 32}) for n in ("resnet8", "resnet32")]
    assert [round(sum(p.numel() for p in n.parameters()) / 1e6, 2) for n in sizes] == [1.23, 7.43]


def test_stages_halve_the_image_and_double_the_width() -> None:
    network, seen = build("resnet8", classes=10, channels=1, options={"width": 4}), {}
    for name in ("layer1", "layer2", "layer3"):
        network.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen.update({name: out.shape[1:]})
        )
    network(torch.randn(2, 1, 16, 16))
    assert seen == {"layer1": (4, 16, 16), "layer2": (8, 8, 8), "layer3": (16, 4, 4)}


def test_alexnet_offers_the_outputs_its_docstring_promises() -> None:
    features = build("alexnet", classes=10, options={"width": 4}).get_submodule("features").children()
    assert [i for i, layer in enumerate(features) if isinstance(layer, nn.ReLU)] == [2, 6, 10, 13, 16]


def test_torchvision_networks_take_options_and_classes() -> None:
    network = build("torchvision:mobilenet_v2", classes=5, options={"width_mult": 0.25}).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert "width_mult" in options_of("torchvision:mobilenet_v2").parameters
    assert "norm_layer" not in options_of("torchvision:mobilenet_v2").parameters


def test_own_networks_get_classes_and_channels_by_the_names_they_use(own: Path) -> None:
    network = build(f"{own}:Small", classes=5, channels=2, options={"depth": 3})
    assert network(torch.randn(1, 2, 4, 4)).shape == (1, 5)
    assert network.depth == 3
    assert list(options_of(f"{own}:Small").parameters) == ["depth"]
    assert isinstance(build(f"{own}:fixed", classes=5, channels=2), nn.Flatten)


def test_own_networks_may_import_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_my_net.py").write_text("from torch import nn\nNET = nn.Flatten\n")
    (tmp_path / "my_net.py").write_text("from neighbour_of_my_net import NET\ndef Net():\n    return NET()\n")
    before = list(sys.path)
    assert isinstance(build(f"{tmp_path}/my_net.py:Net", classes=2), nn.Flatten)
    assert sys.path == before


def test_timm_networks_get_the_data_s_channels(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    asked: dict[str, object] = {}

    def create_model(name: str, **options: object) -> nn.Module:
        asked.update(options, name=name)
        return nn.Identity()

    made = types.SimpleNamespace(
        create_model=create_model, is_model=lambda n: n == "tiny", list_models=lambda: ["tiny"]
    )
    layers = types.SimpleNamespace(BatchNormAct2d=type("BatchNormAct2d", (), {}), Linear=type("Linear", (), {}))
    monkeypatch.setitem(sys.modules, "timm", made)
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    heads = types.SimpleNamespace(ConvMlp=type("ConvMlp", (), {}))
    monkeypatch.setitem(sys.modules, "timm.models.vgg", heads)
    build("timm:tiny", classes=4, channels=1, options={"drop_rate": 0.1})
    assert asked == {"name": "tiny", "num_classes": 4, "in_chans": 1, "drop_rate": 0.1}
    with refused(NetworkError, "network.unknown-name"):
        build("timm:tino", classes=4)


@pytest.fixture
def in_folder_of_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    monkeypatch.setitem(sys.modules, "timm", None)
    (own.parent / "wrong.py").write_text("def Net(:\n")


@pytest.mark.usefixtures("in_folder_of_own")
@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("resnet_20", {}, "network.unknown-name"),
        ("vit", {}, "network.unknown-name"),
        ("resnet8", {"widht": 3}, "network.unknown-option"),
        ("resnet8", {"classes": 3}, "network.unknown-option"),
        ("torchvision:resnet18", {"group": 2}, "network.unknown-option"),
        ("timm:resnet18", {}, "extra.not-installed"),
        ("./none.py:Net", {}, "user-code.missing-file"),
        ("my_net.py", {}, "user-code.no-name"),
        ("my_net.py:Smal", {}, "user-code.unknown-name"),
        ("my_net.py:SIZE", {}, "network.not-callable"),
        ("my_net.py:nothing", {}, "network.not-a-module"),
        ("my_net.py:broken", {}, "network.cannot-be-built"),
        ("my_net.py:unknown", {}, "network.cannot-be-built"),
        ("my_net.py:Small", {"activation": 1}, "network.unknown-option"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, options: dict[str, object], key: str, refused: Refused) -> None:
    with refused(NetworkError, key):
        build(name, classes=3, options=options)


@pytest.mark.usefixtures("in_folder_of_own")
@pytest.mark.parametrize(
    ("name", "options", "key", "message"),
    [
        (
            *("torchvision:resnet19", {}, "network.unknown-name"),
            "torchvision has no network 'resnet19' (did you mean 'resnet18'?); it has",
        ),
        (
            *("torchvision:resnet18", {"groups": 2}, "network.cannot-be-built"),
            "torchvision:resnet18: cannot be built: ValueError: BasicBlock only",
        ),
        ("wrong.py:Net", {}, "user-code.failed-import", "wrong.py: importing it failed: SyntaxError: "),
    ],
)
def test_what_others_refuse_to_build_is_named(name: str, options: dict[str, object], key: str, message: str) -> None:
    """The rest of these messages depends on the version of Python or torchvision."""
    with pytest.raises(NetworkError) as error:
        build(name, classes=3, options=options)
    assert error.value.key == key
    assert str(error.value).startswith(message)


def test_torchvision_networks_need_three_channels(refused: Refused) -> None:
    with refused(NetworkError, "network.channels"):
        build("torchvision:resnet18", classes=3, channels=1)


KEYWORDS = """
from torch import nn

def swallows(*, classes, width: int = 4, **kwargs):
    return nn.Linear(width, classes)

def passes_on(*, classes, **kwargs):
    return swallows(classes=classes, **kwargs)

def looks(*, classes, **kwargs):
    return nn.Linear([kwargs["width"] for _ in range(1)][0], classes)

class Swallows(nn.Linear):
    def __init__(self, classes, width: int = 4, **kwargs):
        super().__init__(width, classes)

class PassesOn(Swallows):
    def __init__(self, classes, **kwargs):
        super().__init__(classes, **kwargs)
"""


@pytest.mark.parametrize("name", ["swallows", "Swallows"])
def test_keywords_that_are_never_read_are_misspelt_options(name: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "net.py").write_text(KEYWORDS)
    assert build(f"{tmp_path}/net.py:{name}", classes=3, options={"width": 5}).in_features == 5
    with refused(NetworkError, "network.unknown-option"):
        build(f"{tmp_path}/net.py:{name}", classes=3, options={"widht": 5})


@pytest.mark.parametrize("name", ["passes_on", "looks", "PassesOn"])
def test_keywords_that_are_read_are_passed_on(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(KEYWORDS)
    assert build(f"{tmp_path}/net.py:{name}", classes=3, options={"width": 5}).in_features == 5


def test_torchvisions_weights_are_a_file_to_start_from(refused: Refused) -> None:
    for weights in ("DEFAULT", "ResNet18_Weights.IMAGENET1K_V1", "IMAGENET1K_V9"):
        with refused(NetworkError, "network.weights"):
            build("torchvision:resnet18", classes=10, options={"weights": weights})
