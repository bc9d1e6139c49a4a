"""Timing: interleaved, for any model, with medians and ratios; wrong settings and files are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qkd.errors import ExportError, UsageError
from qkd.export import (
    Contender,
    Images,
    Runtime,
    Uint8Input,
    bench,
    contenders,
    emit,
    emit_float,
    predict,
    save,
    timing,
)
from qkd.export.session import open_session
from qkd.report.bench_table import processor_notes
from qkd.storage.results import BenchRow
from tests.support.refusals import Refused
from tests.support.tiny_products import SHAPE, Residual, images, product


def timed(files: Sequence[Path], **settings: Any) -> list[BenchRow]:
    """Rows of files, compared with nothing and without images."""
    return bench(contenders(files), **settings)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, trained = tmp_path_factory.mktemp("run"), product(Residual(), "w4a4")
    return save(emit(trained, SHAPE).model, folder / "s.onnx"), save(emit_float(trained, SHAPE), folder / "f.onnx")


def foreign(batch: str | int = "N", kind: int = TensorProto.FLOAT, inputs: int = 1) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(inputs)]
    given = [helper.make_tensor_value_info(name, kind, [batch, 3, 4, 4]) for name in names]
    nodes = [helper.make_node("Cast", ["x0"], ["f"], to=1), helper.make_node("Flatten", ["f"], ["y"])]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 48])
    graph = helper.make_graph(nodes, "g", given, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_rows_for_every_file_batch_and_thread(files: tuple[Path, Path]) -> None:
    student, floating = files
    labels = predict(student, images()).argmax(1)
    both = contenders([student], against=floating, images=Images(images(), labels=labels))
    rows = bench(both, batches=(1, 4), threads=(1, 2), repeats=6)
    assert [(row.file, row.batch, row.threads) for row in rows] == [
        (str(file), batch, threads) for threads in (1, 2) for batch in (1, 4) for file in files
    ]
    for row in rows:
        assert 0 < row.p50_ms <= row.p95_ms and row.rounds == 6
        assert row.images_per_second == pytest.approx(1e3 * row.batch / row.p50_ms)
        assert row.bytes == Path(row.file).stat().st_size
    assert rows[0].top1 == 100 and rows[1].speedup == 1
    assert rows[0].speedup == pytest.approx(rows[1].p50_ms / rows[0].p50_ms)
    assert json.loads(json.dumps(rows[0].to_json()))["file"] == str(student)


def test_no_speedup_without_something_to_compare(files: tuple[Path, Path]) -> None:
    (row,) = timed(files[:1], repeats=1)
    assert row.speedup is None and row.top1 is None and row.instructions


def test_files_run_interleaved_and_each_round_begins_with_the_next() -> None:
    calls: list[str] = []

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, _outputs: Any, _feed: Any) -> None:
            calls.append(self.name)

    times = timing.interleave([Session("a"), Session("b")], [{}, {}], 1.0, 4)
    warm = 2 * timing.WARM_UP
    assert "".join(calls[warm:]) == "abbaabba" and [len(each) for each in times] == [4, 4]


def test_models_from_elsewhere_can_be_timed(tmp_path: Path) -> None:
    path = save(foreign(), tmp_path / "any.onnx")
    assert [row.batch for row in timed([path], batches=(1, 3), repeats=2)] == [1, 3]
    fixed = save(foreign(batch=2, kind=TensorProto.UINT8), tmp_path / "fixed.onnx")
    assert timed([fixed], batches=(2,), repeats=2)[0].images_per_second > 0


def test_what_cannot_be_timed_is_refused(tmp_path: Path, refused: Refused) -> None:
    fixed, two = save(foreign(batch=2), tmp_path / "fixed.onnx"), save(foreign(inputs=2), tmp_path / "two.onnx")
    odd = save(foreign(kind=TensorProto.DOUBLE), tmp_path / "odd.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with refused(ExportError, "bench.fixed-batch"):
        timed([fixed], repeats=1)
    with refused(ExportError, "model.inputs"):
        timed([two], repeats=1)
    with refused(ExportError, "model.input-type"):
        timed([odd], repeats=1)
    with refused(ExportError, "model.missing-file"):
        timed([tmp_path / "missing.onnx"], repeats=1)
    with pytest.raises(ExportError, match=r"text\.onnx: not a valid ONNX model: .*; export it again") as invalid:
        timed([tmp_path / "text.onnx"], repeats=1)
    assert invalid.value.key == "model.invalid-file"  # the wording is onnx's, and differs between versions


@pytest.mark.parametrize("wrong", [{"batches": (0,)}, {"threads": ()}, {"repeats": -1}])
def test_settings_below_one_are_refused(files: tuple[Path, Path], wrong: dict[str, Any], refused: Refused) -> None:
    with refused(UsageError, "bench.setting"):
        timed(files[:1], **wrong)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_measurement_ends(files: tuple[Path, Path], seconds: float, refused: Refused) -> None:
    with refused(UsageError, "bench.seconds"):
        timed(files[:1], seconds=seconds)


def test_time_bounds_a_measurement(files: tuple[Path, Path]) -> None:
    rows = timed(files, seconds=0.05)
    assert all(row.rounds >= timing.LEAST_ROUNDS for row in rows)
    assert np.allclose([row.batch for row in rows], 1)


def test_an_opening_that_came_out_slow_does_not_count(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def run(self, outputs: None, feed: Any) -> None:
            time.sleep(self.seconds)

    def opening(contender: Contender, threads: int) -> tuple[Slow, float]:
        opened.append(contender.path)
        return Slow(0.02 if len(opened) == 1 else 0.001), 0.5

    monkeypatch.setattr(timing, "_opened", opening)
    (row,) = timed(files[:1], seconds=0.15)
    assert opened == [files[0]] * 3
    assert row.p50_ms < 10 and row.load_ms == 500
    assert timed(files[:1], repeats=2)[0].rounds == 2 and len(opened) == 4


def test_each_file_gets_the_images_it_takes(tmp_path: Path) -> None:
    trained = product(Residual(), "w4a4")
    scale, shift = np.full(3, 0.02, np.float32), np.full(3, -2.5, np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    uint8_input = Uint8Input(scale, shift, "nhwc")
    floats = save(emit(trained, SHAPE).model, tmp_path / "f.onnx")
    as_bytes = save(emit(trained, SHAPE, raw=uint8_input).model, tmp_path / "b.onnx")
    normalized = uint8_input.normalized(pixels)
    labels = predict(floats, normalized).argmax(1)
    every = Images(normalized, pixels, labels)
    rows = bench(contenders([as_bytes], against=floats, images=every), repeats=1, memory=True)
    assert [row.top1 for row in rows] == [100, 100] and all(row.peak_mb is not None for row in rows)
    assert [(row.integer_convs, row.convs) for row in rows] == [(4, 4)] * 2
    assert bench(contenders([as_bytes], images=Images(normalized, None, labels)), repeats=1)[0].top1 is None


def test_the_clock_is_the_callers_choice(files: tuple[Path, Path]) -> None:
    ticks = iter(range(1000))
    (row,) = timed(files[:1], repeats=2, clock=lambda: float(next(ticks)))
    assert row.p50_ms == row.p95_ms == 1000


def test_a_second_runtime_takes_part_and_its_agreement_is_measured(files: tuple[Path, Path]) -> None:
    class Pretended:
        """A second runtime that is onnxruntime, but wrong about every fourth image."""

        def __init__(self, path: Path, threads: int) -> None:
            self.session = open_session(path, threads=threads)

        def run(self, outputs: None, feed: Any) -> Any:
            return self.session.run(outputs, feed)

        def logits(self, name: str, given: np.ndarray) -> np.ndarray:
            found = self.session.run(None, {name: given})[0]
            found[::4] = -found[::4]
            return found

    student, floating = files
    labels = predict(student, images()).argmax(1)
    every = Images(images(), labels=labels)
    second = Runtime("pretended", "0", Pretended)
    rows = bench(contenders([student], against=floating, images=every, also_in=second), repeats=4, memory=True)
    assert [(row.runtime, row.file) for row in rows] == [
        (runtime, str(file)) for runtime in ("onnxruntime", "pretended") for file in files
    ]
    assert {row.beside for row in rows} == {str(floating)}
    here, base, there, their_base = rows
    assert (here.agreement, there.agreement, there.top1, there.peak_mb) == (None, 75, 75, None)
    assert here.speedup == pytest.approx(base.p50_ms / here.p50_ms)
    assert there.speedup == pytest.approx(their_base.p50_ms / there.p50_ms)


def test_threads_are_those_asked_for_and_never_spin(files: tuple[Path, Path]) -> None:
    options = open_session(files[0], threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"


def test_a_processor_without_vnni_is_told_what_that_means() -> None:
    assert processor_notes("avx512_vnni") == processor_notes("asimddp") == []
    (said,) = processor_notes("avx2")
    assert "8-bit weights saturate" in said and "first: 7" in said
