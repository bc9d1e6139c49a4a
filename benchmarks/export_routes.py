"""The ways from a trained network to onnxruntime, side by side: what is integer, how large, how fast, how exact.

    python benchmarks/export_routes.py [resnet20 resnet18 mobilenet_v2] [--quick] [--json FILE]

Routes: float; onnxruntime's own static quantization (its best setting, and as it comes); Brevitas' plain export; ours.
Weights are random: the table is about form, speed and equality, not about accuracy. Speed is the median of calls in
turns with the float file of the same network, and of it alone: where nine files take turns each finds the caches as the
others left them, which costs a small network a tenth of its speed-up. Where another route comes within 5 % of ours the two
meet in turns as well. With one thread the time is the process' own, so that waiting for other programs does not count;
with two it is the clock's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import arguments, machine, table, write
from torch import nn

from qkd.export import SETTINGS, bench, contenders, emit, emit_float, emulate, predict, quantize_file, save
from qkd.networks.build import build
from qkd.quantizers import Scheme, calibrate, insert
from qkd.storage.results import BenchRow

NETWORKS = {"resnet20": ("resnet20", 32, 32), "resnet18": ("torchvision:resnet18", 224, 96)}
NETWORKS["mobilenet_v2"] = ("torchvision:mobilenet_v2", 224, 96)
"""Name -> what is built, pixels, pixels with --quick."""
SCHEMES = ("w8a8", "w4a8", "w4a4", "w2a2")
BREVITAS: Mapping[str, Mapping[str, Any]] = {
    "brevitas": {},
    "brevitas torchscript": {"dynamo": False},
}
"""Its export as it comes, and the older one, which needs onnxoptimizer beside it and keeps the batch."""
CLASSES, CALIBRATION_IMAGES = 10, 32
BATCHES, THREADS = (1, 8), (1, 2)
NEAR, LEAST = 0.95, 0.98
"""From which share of our speed on a route meets ours in turns; and what ours may be slower: timing is no finer."""


@dataclass
class Route:
    """One file of one network. ``packed`` in bytes, for ours below 8 bits; ``equal``: % of images equal to the emulator.

    ``emulator``: processor seconds that the emulator takes for 1000 images.
    """

    file: Path | None
    packed: int | None = None
    equal: float | None = None
    emulator: float | None = None
    refused: str = ""
    speed: dict[str, float] = field(default_factory=dict)
    convs: str = ""


def routes_of(name: str, size: int, folder: Path) -> dict[str, Route]:
    images = torch.randn(CALIBRATION_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    modules = {scheme: quantized(name, scheme, images) for scheme in SCHEMES}
    floating = save(emit_float(modules["w8a8"], (3, size, size)), folder / "float.onnx")
    found = {
        f"onnxruntime {setting}": Route(quantize_file(floating, folder / f"{setting}.onnx", images.numpy(), setting))
        for setting in SETTINGS
    }
    found |= {
        route: plain(name, images, folder / f"{route.replace(' ', '_')}.onnx", settings)
        for route, settings in BREVITAS.items()
    }
    found |= {f"ours {scheme}": ours(module, images, folder / f"{scheme}.onnx") for scheme, module in modules.items()}
    return {**found, "float": Route(floating)}


def quantized(name: str, scheme: str, images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    module = insert(build(name, classes=CLASSES), Scheme.parse(scheme, calibration="minmax"))
    calibrate(module, list(images.split(8)))
    return module.eval()


def ours(module: nn.Module, images: torch.Tensor, path: Path) -> Route:
    shape = (3, *images.shape[2:])
    model = emit(module, shape).model
    few = images.numpy()
    start = time.process_time()
    emulated = emulate(model, few)
    seconds = (time.process_time() - start) * 1000 / len(few)
    equal = 100 * float((predict(model, few) == emulated).all(axis=1).mean())
    packed = emit(module, shape, storage="packed").model
    assert np.array_equal(predict(packed, few[:2]), predict(model, few[:2])), "packing changed the logits"
    return Route(save(model, path), packed.ByteSize(), equal, seconds)


def plain(name: str, images: torch.Tensor, path: Path, settings: Mapping[str, Any]) -> Route:
    """Brevitas alone, as its manual has it: its own quantization of the float network and its own export."""
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    torch.manual_seed(0)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            module = quantize(preprocess_for_quantize(build(name, classes=CLASSES).eval()))
            module.train()(images[:8])  # its quantizers take their first scales while training
            export_onnx_qcdq(module.eval(), args=images[:1], export_path=str(path), **settings)
        predict(path, images[:1].numpy())
    except Exception as error:
        return Route(None, refused=f"{type(error).__name__}: {(str(error).strip().splitlines() or ['?'])[0]}"[:120])
    finally:
        logging.disable(logging.NOTSET)
    return Route(path)


def time_all(routes: Mapping[str, Route], seconds: float) -> None:
    """Fills in speeds, as ratios to float, and integer convolutions. A file that takes one batch size is timed at that."""
    floating = str(routes["float"].file)
    for found in routes.values():
        if found.file is None:
            continue
        for batch, count in settings(found.file):
            row = turns(found.file, floating, batch, count, seconds)
            found.speed[f"b{batch} t{count}"] = row.speedup or 0.0
            found.convs = f"{row.integer_convs}/{row.convs}"


def settings(file: Path) -> list[tuple[int, int]]:
    return [(batch, count) for batch in BATCHES if batch == 1 or not _one_only(str(file)) for count in THREADS]


def turns(file: Path, against: Path | str, batch: int, threads: int, seconds: float) -> BenchRow:
    clock = time.process_time if threads == 1 else time.perf_counter
    timed = contenders([file], against=against)
    return bench(timed, batches=(batch,), threads=(threads,), seconds=seconds, clock=clock)[0]


def _one_only(file: str) -> bool:
    import onnx

    model = onnx.load(file, load_external_data=False)
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def size_of(route: Route) -> int:
    """Bytes of a file and of what it keeps outside of itself."""
    assert route.file is not None
    return sum(path.stat().st_size for path in route.file.parent.glob(f"{route.file.name}*"))


def rows_of(name: str, routes: Mapping[str, Route]) -> list[list[object]]:
    rows: list[list[object]] = []
    for route, found in routes.items():
        if found.file is None:
            rows.append([name, route, found.refused, *[""] * (len(HEAD) - 3 + len(BATCHES) * len(THREADS))])
            continue
        packed = "" if found.packed is None else found.packed / 1000
        equal = "" if found.equal is None else f"{found.equal:.0f} %"
        emulator = "" if found.emulator is None else found.emulator
        size, floating = size_of(found), size_of(routes["float"])
        smaller = floating / (found.packed or size)
        rows.append([name, route, found.convs, size / 1000, packed, smaller, equal, emulator, *_speeds(found)])
    return rows


def _speeds(route: Route) -> list[object]:
    return [route.speed.get(f"b{batch} t{count}", "") for batch in BATCHES for count in THREADS]


def behind(name: str, routes: Mapping[str, Route], seconds: float) -> list[str]:
    """Where ours at 8 bits is slower than another route; those that come near it are met in turns."""
    slower, ours = [], routes["ours w8a8"]
    assert ours.file is not None
    for batch, count in settings(ours.file):
        where = f"b{batch} t{count}"
        for route, found in routes.items():
            if "ours" in route or route == "float" or found.file is None or where not in found.speed:
                continue
            if found.speed[where] < NEAR * ours.speed[where]:
                continue
            speed = turns(ours.file, found.file, batch, count, seconds).speedup or 0.0
            print(f"{name} {where}: in turns with {route} ours w8a8 has {speed:.2f} of its speed")
            if speed < LEAST:
                slower.append(f"{name} {where}: ours w8a8 has {speed:.2f} of the speed of {route}")
    return slower


HEAD = (
    "network",
    "route",
    "integer convs",
    "kB",
    "packed kB",
    "times smaller",
    "equal to emulator",
    "emulator s / 1000",
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each file, batch size and number of threads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, slower, figures = [], [], {}
    for name in options.names:
        build_name, size, small = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            routes = routes_of(build_name, small if options.quick else size, Path(folder))
            seconds = 0.5 if options.quick else options.seconds
            time_all(routes, seconds)
            rows += rows_of(name, routes)
            slower += behind(name, routes, seconds)
            figures[name] = {key: {**vars(route), "file": None} for key, route in routes.items()}
    speeds = [f"speed b{batch} t{count}" for batch in BATCHES for count in THREADS]
    print(table((*HEAD, *speeds), rows))
    print(*(slower or ["Ours at 8 bits is as fast as the fastest other route in every row."]), sep="\n")
    write(options.json, {"machine": machine("cpu"), "routes": figures, "behind": slower}, "cpu")


if __name__ == "__main__":
    main()
