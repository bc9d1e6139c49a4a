"""timm's networks are inserted into, traced and exported as torchvision's are."""

from __future__ import annotations

import pytest
import torch

from qkd.errors import NetworkError, QkdError
from qkd.export import emit
from qkd.foresee import stays_float
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert

timm = pytest.importorskip("timm")

LATER = ("resnet18", "resnet50", "mobilenetv3_small_100", "densenet121", "efficientnet_b0", "regnety_004")
NAMES = ["mobilenetv2_100", *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]


def test_timms_own_layers_become_torchs_and_compute_the_same() -> None:
    torch.manual_seed(0)
    original = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    torch.manual_seed(0)
    ours = build("timm:mobilenetv3_small_050", classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), original(x))
    assert not {"BatchNormAct2d"} & {type(layer).__name__ for layer in ours.modules()}
    assert all(type(layer) is torch.nn.Linear for layer in ours.modules() if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("name", NAMES)
def test_they_run_in_integers_or_say_what_does_not(name: str) -> None:
    torch.manual_seed(0)
    module = insert(build(f"timm:{name}", classes=4), Scheme(4, 4, calibration="minmax"))
    images = torch.randn(2, 3, 64, 64)
    calibrate(module, [images])
    foreseen = stays_float(module, (3, 64, 64))
    module.train()(images).square().mean().backward()
    emitted = emit(module.eval(), (3, 64, 64))
    assert list(emitted.float_layers) == foreseen
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in module.modules())
    assert len(emitted.integer_layers) >= 0.7 * convolutions
    assert all(reason for _, reason in foreseen)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("vgg11_bn", "pre_logits"), ("convnext_tiny", "layer_norm")])
def test_what_has_no_form_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises((NetworkError, QkdError), match=words):
        stays_float(insert(build(f"timm:{name}", classes=4), Scheme(4, 4)), (3, 64, 64))
