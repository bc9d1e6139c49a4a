"""Compiled stages: one graph without a break, none made twice; autocast and channels last leave the grid as it is."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from qkd.distill.stages import cut
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, compile_cores, insert, quantizers
from tests.support.tiny_wirings import Residual, images, quantized


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # said by the compiler about its own look
@pytest.mark.parametrize("family", ["lsq", "pact", "hwgq", "ewgs"])
def test_a_stage_is_one_graph_made_once(family: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    network = insert(build("resnet8", classes=4, options={"width": 4}), Scheme(3, 3, family=family))  # type: ignore[arg-type]
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    calibrate(network, [x])
    staged = cut(network.train(), ["layer1", "layer2"])
    staged.replace_stages(lambda stage: torch.compile(stage, backend="aot_eager", dynamic=False, fullgraph=True))
    optimizer = torch.optim.SGD(staged.parameters(), 0.1)
    made_so_far = []
    for _ in range(3):
        optimizer.zero_grad()
        staged(x).square().mean().backward()
        optimizer.step()
        made_so_far.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert made_so_far == [3, 3, 3]


@pytest.mark.parametrize("cores", [False, True])
def test_channels_last_goes_through_the_network(cores: bool) -> None:
    module = quantized(Residual, "w4a4").to(memory_format=torch.channels_last).train()
    compile_cores(module, cores)
    seen: dict[str, bool] = {}

    def look(name: str, tensor: object) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.shape[2] > 1:
            seen[name] = tensor.is_contiguous(memory_format=torch.channels_last)
            if tensor.requires_grad and "gradient" not in name:
                tensor.register_hook(lambda gradient, name=name: look(f"{name}, gradient", gradient))

    for name, layer in module.named_modules():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, output))
    module(images().to(memory_format=torch.channels_last)).square().sum().backward()
    assert len(seen) > 20
    seen.pop("layer2.relu_1, gradient")  # of an average pool, which gives its gradient as it likes
    assert [name for name, kept in seen.items() if not kept] == []


@pytest.mark.parametrize("cores", [False, True])
def test_autocast_to_bfloat16_decides_levels_as_float32_does(cores: bool) -> None:
    """Every value is a level times a float32 scale, rounded to bfloat16 once; zero is zero."""
    module = quantized(Residual, "w4a4")
    compile_cores(module, cores)
    outputs: dict[str, torch.Tensor] = {}
    for name, layer in module.named_modules():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
    with torch.autocast("cpu", torch.bfloat16):
        module.train()(images()).square().sum().backward()
    checked = 0
    for name, core in quantizers(module):
        if not name.endswith(".weight") and isinstance(outputs.get(name), torch.Tensor):
            codes = outputs[name].detach().double() / core.scale().double()  # type: ignore[operator]
            level = codes.round().clamp(core.low, core.high)
            assert ((codes - level).abs() <= 2**-8 * level.abs()).all(), name
            checked += 1
    assert checked > 4
    assert all(core.scale().dtype == torch.float32 for _, core in quantizers(module))  # type: ignore[operator]
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
