"""timm's networks are inserted into, traced and exported as torchvision's are."""

from __future__ import annotations

import pytest
import torch

from qkd.assembly.export_preview import stays_float
from qkd.errors import ExportError
from qkd.export import emit
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert

timm = pytest.importorskip("timm")

LATER = (
    *("resnet18", "resnet50", "mobilenetv3_small_100", "densenet121", "efficientnet_b0", "regnety_004"),
    *("convnext_atto", "convnext_tiny"),
)
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
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = {name for name, layer in module.named_modules() if isinstance(layer, kinds)}
    assert layers <= set(emitted.integer_layers)
    assert all("no integer" in reason for _, reason in foreseen)


@pytest.mark.slow
def test_vggs_head_is_seen_through_and_its_pool_needs_large_images() -> None:
    torch.manual_seed(0)
    original = timm.create_model("vgg11_bn", num_classes=4, mlp_ratio=0.01).eval()
    torch.manual_seed(0)
    ours = build("timm:vgg11_bn", classes=4, options={"mlp_ratio": 0.01}).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), original(x))
    assert set(ours.state_dict()) >= set(original.pre_logits.state_dict(prefix="pre_logits."))
    module = insert(ours, Scheme(4, 4, calibration="minmax"))
    assert not stays_float(module, (3, 224, 224))
    with pytest.raises(ExportError, match=r"pre_logits.pool: an adaptive pool from 1x1 to 7x7 .* choose an image size"):
        stays_float(module, (3, 32, 32))
