"""``qkd export``: a finished run as a verified ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from qkd.export.targets import TARGETS, InputKind, Layout, Storage


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file; what belongs to x.onnx becomes x.float.onnx, x.export.json, x.infer.py. [default: RUN/student.onnx]",
)
@click.option(
    "--storage",
    type=click.Choice(get_args(Storage)),
    default="int8",
    show_default=True,
    help="packed: weights of 4 and 2 bits take 4 and 2 bits; needs a newer onnxruntime, which is printed.",
)
@click.option(
    "--input",
    type=click.Choice(get_args(InputKind)),
    default="float",
    show_default=True,
    help="uint8: the file takes raw images and normalises them itself, to the same logits.",
)
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    default="nchw",
    show_default=True,
    help="Where the channels of raw images lie.",
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="onnxruntime",
    show_default=True,
    help="openvino: run there too, if it is installed. tensorrt, litert: a file of its own, as their documents ask.",
)
@click.option("--require-integer", is_flag=True, help="Exit code 3 if a layer stays float.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def export(
    run: Path,
    output: Path | None,
    storage: Any,
    input: Any,
    layout: Any,
    target: str,
    require_integer: bool,
    as_json: bool,
) -> None:
    """Write the product of RUN as ONNX, proven equal to an integer emulator on the whole test split."""
    from qkd.errors import GateError
    from qkd.pipeline.export import export_run
    from qkd.storage.run import Run

    report = export_run(Run.open(run), output=output, storage=storage, input=input, layout=layout, target=target)
    if as_json:
        click.echo(json.dumps(report))
    elif not TARGETS[target].proven:
        show_trial(report)
    else:
        show(report)
    if require_integer and report["float_layers"]:
        raise GateError(f"{report['file']}: stays float: {', '.join(map(str, report['float_layers']))}")


def show(report: dict[str, Any]) -> None:
    """The report as a table for people."""
    from rich.table import Table

    from qkd.cli.progress import console
    from qkd.storage.artifacts import INFER

    table = Table(title=report["file"], show_header=False, title_justify="left")
    integers, floats = report["integer_layers"], report["float_layers"]
    count = integers if isinstance(integers, int) else len(integers)
    smaller = report["float_bytes"] / report["bytes"]
    rows = [
        ("integer layers", f"{count} of {count + len(floats)}" + "".join(f"\nfloat: {f}" for f in floats)),
        _proof(report, count),
        *_likeness(report),
        *(
            [("equal to PyTorch's fake quantization", "100.00 % of them, every logit")]
            * (report["same_as_reference"] == 1)
        ),
        ("top-1 in PyTorch" + " (fake quantization)" * bool(count), f"{report['top1_torch']:.2f} %"),
        ("top-1 in onnxruntime", f"{report['top1_onnxruntime']:.2f} %"),
        (
            "size",
            f"{report['bytes'] / 1000:.1f} kB, float {report['float_bytes'] / 1000:.1f} kB ({smaller:.1f}x smaller)",
        ),
        ("takes", _takes(report)),
        ("needs onnxruntime", f">= {report['minimum_onnxruntime']}"),
        *([("resolution", _resolution(report))] * bool(count)),
        ("classifies image files", report["program"] or f"nothing: {INFER} beside it is your own and stays as it is"),
    ]
    if "openvino" in report:
        found = report["openvino"]
        rows.append(("top-1 in openvino", f"{found['top1']:.2f} %, agrees on {found['agreement']:.2f} % of them"))
    for name, value in rows:
        table.add_row(name, value)
    console().print(table)


def _proof(report: dict[str, Any], integers: int) -> tuple[str, str]:
    if not integers:
        return (
            "a float network; agrees with PyTorch",
            f"on {report['agreement']:.2f} % of the {report['images']} test images",
        )
    equal = f"{100 * report['equal_fraction']:.2f} % of the {report['images']} test images, every logit"
    return "equal to the integer emulator", equal


def _likeness(report: dict[str, Any]) -> list[tuple[str, str]]:
    """How the file's integers stand to PyTorch's, where there are any."""
    if not report["compared_quantizers"]:
        return []
    share = f"{report['same_integers']:.2f} % of the integers, the rest within rounding"
    return [("what PyTorch computes, layer by layer", share)]


def show_trial(report: dict[str, Any]) -> None:
    """What is known of a file for a runtime that is not here."""
    from rich.table import Table

    from qkd.cli.progress import console

    table = Table(title=report["file"], show_header=False, title_justify="left")
    rows = [
        ("for", f"{report['target']}, as its documents ask; not run there"),
        ("integer layers", f"{len(report['integer_layers'])} of {_layers(report)}"),
        ("top-1 taken literally", f"{report['top1_literal']:.2f} %, in PyTorch {report['top1_torch']:.2f} %"),
        ("top-1 agreement", f"{report['agreement']:.2f} % of the {report['images']} test images"),
        ("8 bits became 7", ", ".join(report["coarsened"]) or "nowhere"),
        ("size", f"{report['bytes'] / 1000:.1f} kB"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console().print(table)


def _layers(report: dict[str, Any]) -> int:
    return len(report["integer_layers"]) + len(report["float_layers"])


def _takes(report: dict[str, Any]) -> str:
    if report["input"] == "uint8":
        return f"raw images, uint8, {report['layout'].upper()}"
    return "normalised images, float32, NCHW"


def _resolution(report: dict[str, Any]) -> str:
    """Whether low-bit layers count finely enough: a bias step beside the step of the layer's output."""
    steps = {each["layer"]: each["bias_step"] for each in report["resolution"] if each["bias_step"] is not None}
    if not report["coarse_layers"]:
        return f"bias steps of at most {max(steps.values(), default=0):.3f} output steps"
    errors = {each["layer"]: each["bias_error"] for each in report["resolution"]}
    coarse = [
        f"{name}: a bias step is {steps[name]:.2f} output steps, rounding moved it by {errors[name]:.2f} at most"
        for name in report["coarse_layers"]
    ]
    return "\n".join(coarse)
