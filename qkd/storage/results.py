"""What the commands find out, as values: of training, export, benchmark, evaluation, bit allocation and comparison.

Each is what its command prints with ``--json`` and, where a run keeps it, the content of a file of the run folder. Accuracies
and agreements are in %, sizes in bytes, times in the unit their name ends with; None: not known, or not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qkd.storage.collaboration import CombinedTeacher, TeacherGradient
from qkd.storage.json_record import LEFT_OUT_WHILE_NONE, JsonRecord, stored_as


@dataclass(frozen=True)
class ParticipantCost(JsonRecord):
    """What one network costs: its parameters, and milliseconds of one batch forward, and forward and backward."""

    parameters: int | None = None
    forward_ms: float | None = None
    learn_ms: float | None = None


@dataclass(frozen=True)
class TrainingCost(JsonRecord):
    """``peak_memory_mb``: MiB of the process, or of the GPU. ``batch``: the images of a batch that was timed."""

    peak_memory_mb: float | None = None
    batch: int | None = None
    participants: Mapping[str, ParticipantCost] | None = None


@dataclass(frozen=True)
class TrainResult(JsonRecord):
    """``result.json``. ``top1`` is of the product on the test split, ``val_top1`` of its best epoch on the validation split.

    ``float_top1``: of the student's float start, or of the product in float after ``pretrain.joint_epochs``; ``before_top1``:
    quantized and calibrated, before training. ``seconds``: of the last process; ``training_seconds`` and
    ``training_cpu_seconds``: of training alone, over all processes of the run. ``parts``: top-1 of every participant on the
    test split. ``ece``: expected calibration error, 0..1. ``diagnostics``: a line for each quantizer with a problem.
    ``finished``: False where training was stopped before its last epoch. ``gradients``: of every teacher that learns beside the
    student. ``importance_moved``: see `importance_moved` in `qkd.report.collaboration`.
    """

    run: str | None = None
    method: str | None = None
    top1: float | None = None
    float_top1: float | None = None
    val_top1: float | None = None
    epochs: int | None = None
    seconds: float | None = None
    seed: int | None = None
    before_top1: float | None = None
    training_seconds: float | None = None
    training_cpu_seconds: float | None = None
    steps: int | None = None
    parts: Mapping[str, float] | None = None
    ece: float | None = None
    cost: TrainingCost | None = None
    diagnostics: tuple[str, ...] | None = field(default=None, metadata=stored_as("alarms"))
    finished: bool | None = None
    combined: CombinedTeacher | None = field(default=None, metadata=LEFT_OUT_WHILE_NONE)
    gradients: Mapping[str, TeacherGradient] | None = field(default=None, metadata=LEFT_OUT_WHILE_NONE)
    importance_moved: float | None = field(default=None, metadata=LEFT_OUT_WHILE_NONE)


@dataclass(frozen=True)
class DataFacts(JsonRecord):
    """What a report needs of ``data.json``: the shape (channels, height, width), the labels, and the images of each split."""

    shape: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None
    images: Mapping[str, int] | None = None


@dataclass(frozen=True)
class LayerResolution(JsonRecord):
    """How finely an integer layer counts; see `qkd.export.resolution.Resolution`."""

    layer: str | None = None
    weight_bits: int | None = None
    weight_levels: int | None = None
    headroom: int | None = None
    factors: tuple[int, ...] | None = None
    bias_step: float | None = None
    bias_error: float | None = None


@dataclass(frozen=True)
class SecondRuntime(JsonRecord):
    """A file in another runtime: its version, top-1, and on how many images its top-1 class is that of onnxruntime."""

    version: str | None = None
    top1: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class ExportReport(JsonRecord):
    """``export.json``: a file that was verified in onnxruntime.

    The fields up to ``same_as_reference`` are those of `qkd.export.Verdict`. ``openvino``: the same file there, where it was
    asked for. ``float_bytes``: size of the float file. ``same_integers``: share (%) of the integers that PyTorch computes as
    well, over ``compared_quantizers`` quantizers. ``coarse_layers``: layers of low resolution. ``program``: the file that
    classifies images, None where another of that name was left as it is.
    """

    file: str | None = None
    bytes: int | None = None
    images: int | None = None
    minimum_onnxruntime: str | None = None
    instructions: str | None = None
    operator_counts: Mapping[str, int] | None = field(default=None, metadata=stored_as("census"))
    integer_layers: tuple[str, ...] | None = None
    float_layers: tuple[str, ...] | None = None
    reasons: Mapping[str, str] | None = None
    equal_fraction: float | None = None
    largest_difference: float | None = None
    first_divergence: str | None = None
    same_in_batches: bool | None = None
    optimizer_difference: float | None = None
    emulator_agreement: float | None = None
    top1_emulator: float | None = None
    top1_onnxruntime: float | None = None
    top1_torch: float | None = None
    agreement: float | None = None
    same_as_reference: float | None = None
    openvino: SecondRuntime | None = field(default=None, metadata=LEFT_OUT_WHILE_NONE)
    float_bytes: int | None = None
    same_integers: float | None = None
    compared_quantizers: int | None = None
    sha256: str | None = None
    target: str | None = None
    storage: str | None = None
    input: str | None = None
    layout: str | None = None
    resolution: tuple[LayerResolution, ...] | None = None
    coarse_layers: tuple[str, ...] | None = None
    program: str | None = None


@dataclass(frozen=True)
class UnprovenExportReport(JsonRecord):
    """``student.<target>.export.json``: a file for a runtime that is not here, run unoptimised in onnxruntime.

    The fields up to ``largest_difference`` are those of `qkd.export.ReferenceRun`.
    """

    file: str | None = None
    bytes: int | None = None
    images: int | None = None
    integer_layers: tuple[str, ...] | None = None
    float_layers: tuple[str, ...] | None = None
    reasons: Mapping[str, str] | None = None
    narrowed: tuple[str, ...] | None = field(default=None, metadata=stored_as("coarsened"))
    top1_unoptimised: float | None = field(default=None, metadata=stored_as("top1_literal"))
    top1_torch: float | None = None
    agreement: float | None = None
    largest_difference: float | None = None
    target: str | None = None
    storage: str | None = None


@dataclass(frozen=True)
class BenchRow(JsonRecord):
    """One file at one batch size and number of threads, in one runtime.

    p50_ms, p95_ms: time of one call, not of one image. speedup: median of the compared file over this one's, None
    without a compared file. top1: % of the labels, None without them. rounds: how many calls were timed.
    instructions: the best integer instructions of the processor; int8 is far slower where "vnni" is missing.
    load_ms: time to open the file. integer_convs of convs: convolutions that run as integer kernels; 0 for another
    runtime, where that is not known. peak_mb: the most memory a process of its own needs for the file beyond
    onnxruntime itself, None where it was not measured. agreement: for another runtime how often its top-1 is
    onnxruntime's, in %, None without images. beside: the file ``speedup`` is over, None without one.
    """

    file: str | None = None
    batch: int | None = None
    threads: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    images_per_second: float | None = None
    bytes: int | None = None
    speedup: float | None = None
    top1: float | None = None
    rounds: int | None = None
    instructions: str | None = None
    load_ms: float | None = None
    integer_convs: int | None = None
    convs: int | None = None
    peak_mb: float | None = None
    runtime: str | None = None
    agreement: float | None = None
    beside: str | None = None


@dataclass(frozen=True)
class BenchReport(JsonRecord):
    """``bench.json``: the rows, what they are compared with last. ``judged``: the files that were asked for."""

    processor: str | None = None
    rows: tuple[BenchRow, ...] | None = None
    judged: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EvalResult(JsonRecord):
    """Top-1 on so many images."""

    top1: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Allocation(JsonRecord):
    """``bits`` of each layer's weights and their mean; ``error``: what lowering each layer alone costs, summed.

    ``kb``: size of the packed file in 1000 bytes. ``quantize``: the block for a recipe.
    """

    bits: Mapping[str, int] | None = None
    mean_bits: float | None = None
    error: float | None = None
    kb: float | None = None
    quantize: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ComparedRun(JsonRecord):
    """A run in a comparison. ``p50_ms`` and ``speedup`` are those at the smallest batch that was measured."""

    run: str | None = None
    method: str | None = None
    network: str | None = None
    bits: str | None = None
    levels: int | None = None
    float_top1: float | None = None
    before_top1: float | None = None
    top1: float | None = None
    top1_onnxruntime: float | None = None
    bytes: int | None = None
    float_bytes: int | None = None
    batch: int | None = None
    threads: int | None = None
    p50_ms: float | None = None
    float_p50_ms: float | None = None
    speedup: float | None = None
    seconds: float | None = None
    seed: int | None = None
    combined: CombinedTeacher | None = field(default=None, metadata=LEFT_OUT_WHILE_NONE)


@dataclass(frozen=True)
class Spread(JsonRecord):
    """Mean and sample standard deviation of ``count`` values; None where there are too few for it."""

    mean: float | None = None
    std: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class ComparedSeeds(JsonRecord):
    """Runs whose recipes differ in nothing but the seed. The fields of the type Spread are summaries of those of the runs."""

    runs: tuple[str, ...] | None = None
    seeds: tuple[int | None, ...] | None = None
    method: str | None = None
    network: str | None = None
    bits: str | None = None
    levels: int | None = None
    batch: int | None = None
    threads: int | None = None
    float_top1: Spread | None = None
    before_top1: Spread | None = None
    top1: Spread | None = None
    top1_onnxruntime: Spread | None = None
    bytes: Spread | None = None
    p50_ms: Spread | None = None
    speedup: Spread | None = None
    seconds: Spread | None = None
