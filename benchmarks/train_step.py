"""Step time of quantized training beside float: stock Brevitas, ours in eager mode, with compiled cores, compiled whole.

    python benchmarks/train_step.py                        # ResNet-20 and MobileNetV2, W4A4 and W8A8, CMT-KD
    python benchmarks/train_step.py --quick --parts eager core cmtkd
    python benchmarks/train_step.py --parts core --precision bf16      # both networks under autocast

A step is forward, backward and SGD (fused, as training takes it) on one batch that stays the same. Ratios are of medians:
to float in eager mode, and for networks compiled whole to float compiled whole. Compiling takes minutes the first time;
later runs find the compiler's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from interleaved import Work, arguments, machine, medians, ratios, table, write
from torch import nn

from qkd.engine.device import keep_memory
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, compile_cores, insert

NETWORKS = {"resnet20": "resnet20", "mobilenet_v2": "torchvision:mobilenet_v2"}
PARTS = ("stock", "eager", "core", "whole", "cmtkd", "speq")
AIMS = {"stock": "", "eager": 1.45, "core": 1.10, "whole": 1.20, "cmtkd": 1.15, "speq": ""}
CLASSES = 10
_LINEAR = ("in_features", "out_features")
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def stock(module: nn.Module) -> nn.Module:
    """The same wiring with the quantizers Brevitas ships: learned activation thresholds, weight scales from statistics."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    for path, layer in list(module.named_modules()):
        if isinstance(layer, (qnn.QuantConv2d, qnn.QuantLinear)):
            names = _LINEAR if isinstance(layer, qnn.QuantLinear) else _CONVOLUTION
            kind = qnn.QuantLinear if isinstance(layer, qnn.QuantLinear) else qnn.QuantConv2d
            made = kind(
                **{name: getattr(layer, name) for name in names},
                bias=layer.bias is not None,
                weight_quant=Int8WeightPerChannelFloat,
                weight_bit_width=layer.weight_quant.tensor_quant.bits,
            )
            module.set_submodule(path, made)
        elif isinstance(layer, (qnn.QuantReLU, qnn.QuantIdentity)):
            kind = Int8ActPerTensorFloat if layer.act_quant.is_signed else Uint8ActPerTensorFloat
            home = qnn.QuantReLU if isinstance(layer, qnn.QuantReLU) else qnn.QuantIdentity
            made = home(act_quant=kind, bit_width=layer.act_quant.core.bits, collect_stats_steps=1)
            module.set_submodule(path, made)
    return module


def step_of(network: nn.Module, images: torch.Tensor, precision: str = "fp32") -> Work:
    network = network.to(images.device, memory_format=torch.channels_last).train()

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return network(images)

    return _step(forward, network.parameters(), images)


def _step(network: Callable[[torch.Tensor], torch.Tensor], parameters: object, images: torch.Tensor) -> Work:
    labels = torch.arange(len(images), device=images.device) % CLASSES
    optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.9, fused=True)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images).float(), labels).backward()
        optimizer.step()

    return step


def contestants(name: str, scheme: Scheme, images: torch.Tensor, parts: list[str], precision: str) -> dict[str, Work]:
    """One step of each, warm: calibrated, statistics gathered."""
    torch.manual_seed(0)
    network = build(NETWORKS[name], classes=CLASSES)

    def ours() -> nn.Module:
        module = insert(network, scheme)
        calibrate(module, [images[:32].cpu()])
        return module

    works = {"float": step_of(insert_nothing(network), images, precision)}
    if "stock" in parts:
        works["stock"] = step_of(stock(insert(network, scheme)), images)
    if "eager" in parts:
        works["eager"] = step_of(ours(), images, precision)
    if "core" in parts:
        module = ours()
        compile_cores(module)
        works["core"] = step_of(module, images, precision)
    if "whole" in parts:
        works["float whole"] = step_of(torch.compile(insert_nothing(network)), images)  # type: ignore[arg-type]
        works["whole"] = step_of(torch.compile(ours()), images)  # type: ignore[arg-type]
    return works


def insert_nothing(network: nn.Module) -> nn.Module:
    """The float network as the same kind of graph, so that only quantizers differ."""
    import copy

    from qkd.networks.tracing import trace

    return trace(copy.deepcopy(network))


def step_of_recipe(name: str, words: list[str], images: torch.Tensor, *, compiled: bool) -> tuple[Work, int]:
    """One step of the method of a bundled recipe with changes, and its number of networks."""
    from qkd.assembly.assemble import assemble
    from qkd.data import Batch
    from qkd.distill.plan import networks_needed
    from qkd.distill.terms import weighted_sum
    from qkd.recipe.files import load
    from qkd.tasks.spec import DataSpec

    recipe = load(name, words)
    assembly = assemble(recipe, DataSpec((3, *images.shape[2:]), CLASSES))
    parts = assembly.ensemble
    for network in parts.owners.values():
        calibrate(network.network, [images[:32].cpu()])
        compile_cores(network, compiled)
    parts = parts.to(images.device, memory_format=torch.channels_last)
    (step,) = assembly.plan.phases[0].steps
    parts.set_learners(step.learners)
    optimizer = torch.optim.SGD([p for p in parts.parameters() if p.requires_grad], 1e-3, momentum=0.9, fused=True)
    ids = torch.arange(len(images), device=images.device)
    batch, active = Batch(images, ids % CLASSES, ids), sorted(networks_needed(assembly.plan, step))

    def together() -> None:
        optimizer.zero_grad()
        outputs = parts(images, active)
        weighted_sum({term.name: term(outputs, batch) for term in step.terms}, step.terms, 0.0).backward()
        optimizer.step()

    return together, len(parts.networks)


def cmtkd(images: torch.Tensor, *, compiled: bool) -> dict[str, Work]:
    """One CMT-KD step of four ResNet-20, and one step each of four float ones."""
    networks = [f"{part}.build=resnet20" for part in ("student", "teachers.five", "teachers.six", "teachers.eight")]
    together, count = step_of_recipe("digits_cmtkd_w4a4", networks, images, compiled=compiled)
    alone = [step_of(insert_nothing(build("resnet20", classes=CLASSES)), images) for _ in range(count)]

    def one_by_one() -> None:
        for work in alone:
            work()

    return {"four float steps": one_by_one, "cmtkd": together}


def speq(images: torch.Tensor, *, compiled: bool) -> dict[str, Work]:
    """One step of a W2A2 ResNet-20 from the labels alone, and one of SPEQ: another forward pass without gradients."""
    names = {"qat": "digits_qat_w2a2", "speq": "digits_speq_w2a2"}
    words = ["student.build=resnet20"]
    return {name: step_of_recipe(recipe, words, images, compiled=compiled)[0] for name, recipe in names.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--schemes", nargs="+", default=["w4a4", "w8a8"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of float, eager and core")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as training does
    rounds = 5 if options.quick else options.rounds
    images = torch.randn(options.batch or (32 if options.quick else 128), 3, options.size, options.size)
    images = images.to(options.device, memory_format=torch.channels_last)
    figures: dict[str, object] = {
        "batch": len(images),
        "size": options.size,
        "rounds": rounds,
        "precision": options.precision,
    }
    rows: list[list[object]] = [["aim", "", *(AIMS[part] for part in PARTS)]]
    print(machine(options.device), figures, flush=True)
    for name in options.networks if {*options.parts} - {"cmtkd", "speq"} else []:
        for text in options.schemes:
            works = contestants(name, Scheme.parse(text), images, options.parts, options.precision)
            times = medians(works, rounds=rounds, warm=3, device=options.device)
            found = ratios(times, "float", instead={"whole": "float whole"})
            figures[f"{name} {text}"] = {"milliseconds": times, "ratios": found}
            rows.append([f"{name} {text}", times["float"], *(found.get(part, "") for part in PARTS)])
            print(rows[-1], flush=True)
    for compiled in (False, True) if "cmtkd" in options.parts else ():
        times = medians(cmtkd(images, compiled=compiled), rounds=rounds, warm=3, device=options.device)
        found = ratios(times, "four float steps")
        name = f"resnet20 w4a4, three teachers, {'compiled cores' if compiled else 'eager'}"
        figures[name] = {"milliseconds": times, "ratios": found}
        rows.append([name, times["four float steps"], *(found.get(part, "") for part in PARTS)])
    for compiled in (False, True) if "speq" in options.parts else ():
        times = medians(speq(images, compiled=compiled), rounds=rounds, warm=3, device=options.device)
        name = f"resnet20 w2a2 beside qat, {'compiled cores' if compiled else 'eager'}"
        figures[name] = {"milliseconds": times, "ratios": ratios(times, "qat")}
        rows.append([name, "", *[""] * (len(PARTS) - 1), times["speq"] / times["qat"]])
    print(table(["", "float ms", *PARTS], rows))
    write(options.json, figures, options.device)


if __name__ == "__main__":
    main()
