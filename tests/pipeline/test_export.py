"""From a finished run to files for others: uint8 input, the program beside, gates, metadata, benchmark and evaluation."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image

from qkd import recipe as recipes
from qkd.assembly.inputs import load_data
from qkd.cli.bench import show
from qkd.cli.main import main
from qkd.engine.device import Machine
from qkd.engine.metrics import logits
from qkd.errors import ExportError, GateError, UsageError
from qkd.export import emulate, predict
from qkd.pipeline.benchmark import Gates, benchmark_files, require_gates
from qkd.pipeline.evaluate import EvalImages, eval_images, evaluate_file_or_run
from qkd.pipeline.export import export_run
from qkd.pipeline.onnx_metadata import MARK
from qkd.pipeline.reload import reload_product
from qkd.pipeline.train import train_recipe
from qkd.storage.results import BenchReport, BenchRow, ExportReport
from qkd.storage.run import Run
from qkd.tasks.classification import top1
from tests.support.refusals import Refused
from tests.support.tiny_runs import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished, exported run."""
    folder = tmp_path_factory.mktemp("ship")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "method": {"name": "qat"}, "teachers": {}, "match": []}))
    made = Run.create(folder / "run")
    train_recipe(recipes.load(folder / "tiny.yaml", ("train.epochs=1",)), made, Machine("cpu", threads=1))
    export_run(made)
    return made


def verified(report: object) -> ExportReport:
    assert isinstance(report, ExportReport)
    return report


def rows_of(report: BenchReport) -> tuple[BenchRow, ...]:
    assert report.rows
    return report.rows


def sample(run: Run) -> EvalImages:
    found = eval_images(run)
    assert found is not None
    return found


def metadata(file: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_raw_input_gives_the_logits_of_float_input_on_all_test_images(run: Run, layout: Any, tmp_path: Path) -> None:
    report = verified(export_run(run, output=tmp_path / "raw.onnx", input="uint8", layout=layout))
    images, raw, labels = sample(run)
    given = raw if layout == "nchw" else np.ascontiguousarray(raw.transpose(0, 2, 3, 1))
    expected = predict(run.folder / "student.onnx", images)
    assert np.array_equal(predict(tmp_path / "raw.onnx", given), expected)
    assert np.array_equal(emulate(tmp_path / "raw.onnx", given), expected)
    assert (report.input, report.layout, report.equal_fraction, report.images) == ("uint8", layout, 1, 32)
    assert report.float_layers == () and (tmp_path / "raw.float.onnx").stat().st_size == report.float_bytes
    assert report.top1_onnxruntime == pytest.approx(100 * (expected.argmax(1) == labels).mean())


def test_a_raw_file_is_scored_and_timed_with_bytes(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    copy = Run(tmp_path / "copy")
    expected = evaluate_file_or_run(copy.folder, recipe=None, integer=True)
    report = verified(export_run(copy, input="uint8", layout="nhwc"))
    assert evaluate_file_or_run(copy.folder / "student.onnx", recipe=None, integer=False) == expected
    assert evaluate_file_or_run(copy.folder, recipe=None, integer=True) == expected
    rows = rows_of(benchmark_files([copy.folder], batches=(2,), seconds=0.01))
    assert rows[0].top1 == report.top1_onnxruntime and rows[0].integer_convs == rows[0].convs != 0
    assert rows[1].integer_convs == 0 and all((row.load_ms or 0) > 0 for row in rows)


def test_settings_that_make_no_file_are_refused(run: Run, tmp_path: Path, refused: Refused) -> None:
    for name in ("float.onnx", "s.float.onnx"):
        with refused(ExportError, "export.name-of-a-float-file"):
            export_run(run, output=tmp_path / name)
    with refused(ExportError, "export.layout-of-float-input"):
        export_run(run, output=tmp_path / "x.onnx", layout="nhwc")
    assert not list(tmp_path.iterdir())
    (tmp_path / "recipe.yaml").write_text("a recipe")
    with refused(ExportError, "export.no-onnx-path"):
        export_run(run, output=tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "a recipe"
    (tmp_path / "folder.onnx").mkdir()
    with refused(ExportError, "export.no-onnx-path"):
        export_run(run, output=tmp_path / "folder.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "recipe.yaml"]


def test_a_file_that_fails_is_not_left_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def otherwise(file: Any, images: np.ndarray) -> np.ndarray:
        return predict(file, images) + (images.dtype == np.uint8)

    monkeypatch.setattr("qkd.pipeline.export.predict", otherwise)
    with refused(GateError, "export.uint8-input-differs"):
        export_run(run, output=tmp_path / "raw.onnx", input="uint8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "litert"])
def test_a_file_of_another_network_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    right = importlib.import_module("qkd.export.ops_layers").normalization

    def without_offset(norm: Any, where: str) -> Any:
        found = right(norm, where)
        return replace(found, offset=found.offset + 0.5)

    monkeypatch.setattr("qkd.export.ops_layers.normalization", without_offset)
    with pytest.raises(GateError, match="x.onnx: is not the network that was trained: relu: .* integers are not what"):
        export_run(run, output=tmp_path / "x.onnx", target=target)
    assert not list(tmp_path.iterdir())


def test_a_float_file_of_another_network_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    right = importlib.import_module("qkd.pipeline.export").emit_float

    def other(network: Any, shape: Any) -> Any:
        network = copy.deepcopy(network)
        next(part for part in network.modules() if isinstance(part, torch.nn.Linear)).bias.data += 1
        return right(network, shape)

    monkeypatch.setattr("qkd.pipeline.export.emit_float", other)
    with refused(GateError, "export.float-file-differs"):
        export_run(run, output=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_the_report_counts_the_integers_that_pytorch_computes_too(run: Run) -> None:
    report = json.loads((run.folder / "export.json").read_text())
    assert 98 < report["same_integers"] <= 100 and report["compared_quantizers"] > 10


def test_a_file_holds_its_metadata(run: Run) -> None:
    found = metadata(run.folder / "student.onnx")
    how = json.loads(found["preprocessing"])
    assert (how["input"], how["layout"], how["channels"], how["height"], how["width"]) == ("float32", "nchw", 3, 16, 16)
    assert json.loads(found["labels"]) == list(load_data(recipes.load(run.folder / "recipe.yaml")).labels)
    assert yaml.safe_load(found["recipe"]) == yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert json.loads(found["bits"]) == {"weights": 2, "activations": 2, "first": 8, "last": 8}
    assert found["scheme"] == "w2a2" and found["name"] == "run" and found["qkd"] and found["minimum_onnxruntime"]


def test_the_report_holds_the_resolution_of_layers(run: Run) -> None:
    report = json.loads((run.folder / "export.json").read_text())
    layers = {each["layer"]: each for each in report["resolution"]}
    assert set(layers) <= set(report["integer_layers"]) and layers["layer1.0.conv1"]["weight_bits"] == 2
    assert all(each["headroom"] <= 127 for each in layers.values())
    coarse = [name for name, each in layers.items() if (each["bias_step"] or 0) > 0.05]
    assert report["coarse_layers"] == coarse


@pytest.mark.parametrize(("kind", "layout"), [("float", "nchw"), ("uint8", "nchw"), ("uint8", "nhwc")])
def test_the_program_beside_classifies_a_png_without_qkd(run: Run, kind: Any, layout: Any, tmp_path: Path) -> None:
    report = verified(export_run(run, output=tmp_path / "a net's.onnx", input=kind, layout=layout))
    assert report.program is not None
    images, raw, _ = sample(run)
    for i in range(2):
        Image.fromarray(raw[i].transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    words = [sys.executable, "-W", "error", report.program, str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    logits = predict(run.folder / "student.onnx", images[:2])
    labels = json.loads(metadata(tmp_path / "a net's.onnx")["labels"])
    assert [row[1] for row in rows] == [labels[each] for each in logits.argmax(1)]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    assert [float(row[2]) for row in rows] == pytest.approx((1 / exponentials.sum(1)).tolist(), abs=1e-4)
    source = Path(report.program).read_text()
    assert "qkd." not in source and "torch" not in source and len(source.splitlines()) < 30


def test_a_program_of_the_user_is_never_overwritten(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "infer.py").write_text("mine")
    main_or_exit(["export", str(run.folder), "-o", str(tmp_path / "student.onnx")])
    assert "infer.py" in (out := capsys.readouterr().out) and "your own" in out
    assert json.loads((tmp_path / "export.json").read_text())["program"] is None
    assert (tmp_path / "infer.py").read_text() == "mine" and (run.folder / "infer.py").read_text().startswith(MARK)


def test_what_belongs_to_one_file_is_left_alone_by_the_next(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    copy = Run(tmp_path / "copy")
    benchmark_files([copy.folder], batches=(1,), seconds=0.01)
    kept = {path.name: path.read_bytes() for path in copy.folder.iterdir() if path.is_file()}
    report = export_run(copy, output=copy.folder / "x.onnx", storage="packed")
    assert {name: (copy.folder / name).read_bytes() for name in kept} == kept
    assert {path.name for path in copy.folder.iterdir() if path.is_file()} - set(kept) == {
        "x.onnx",
        "x.float.onnx",
        "x.export.json",
        "x.infer.py",
    }
    assert json.loads((copy.folder / "x.export.json").read_text())["file"] == report.file
    rows = rows_of(benchmark_files([copy.folder / "x.onnx"], batches=(1,), seconds=0.01))
    assert [row.file for row in rows] == [str(copy.folder / name) for name in ("x.onnx", "x.float.onnx")]
    assert (copy.folder / "bench.json").read_bytes() == kept["bench.json"]
    (copy.folder / "x.float.onnx").unlink()
    rows = rows_of(benchmark_files([copy.folder / "x.onnx"], batches=(1,), seconds=0.01))
    assert [row.file for row in rows] == [str(copy.folder / "x.onnx")]


def test_a_file_that_changed_since_it_was_verified_is_a_warning(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    file = tmp_path / "copy" / "student.onnx"
    warning = f"warning: {file}: no longer the file that was verified; `qkd export {tmp_path / 'copy'}` again\n"
    for changed in (False, True):
        if changed:
            file.write_bytes((run.folder / "float.onnx").read_bytes())
        for command in ("compare", "report"):
            main_or_exit([command, str(tmp_path / "copy")])
            assert capsys.readouterr().err == warning * changed
    assert "no longer the file that was verified" in (tmp_path / "copy" / "report.html").read_text()


def test_a_changed_file_is_timed_and_scored_with_a_warning(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    file = tmp_path / "copy" / "student.onnx"
    commands = [["eval", str(file)], ["eval", str(file.parent), "--integer"], ["bench", str(file), "--seconds", "0.01"]]
    for command in commands:
        main_or_exit(command)
    assert "warning" not in capsys.readouterr().err
    changed = onnx.load(str(file))
    changed.doc_string = "changed"
    onnx.save(changed, str(file))
    for command in commands:
        main_or_exit(command)
        assert capsys.readouterr().err == f"warning: {file}: no longer the file that was verified; export it again\n"
    main_or_exit(["eval", str(file.parent)])  # the product in PyTorch is another thing
    assert not capsys.readouterr().err


def test_a_file_is_evaluated_on_the_cpu_only(run: Run, refused: Refused) -> None:
    with refused(UsageError, "eval.file-on-another-device"):
        evaluate_file_or_run(run.folder / "student.onnx", recipe=None, integer=False, device="cuda")


def test_a_run_is_evaluated_on_other_data(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def recipe(name: str, **data: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], **data}}))
        return str(path)

    longer = recipe("longer", train=80, test=48)
    found = [
        evaluate_file_or_run(which, recipe=longer, integer=integer, device="cpu")
        for which, integer in ((run.folder, False), (run.folder, True), (run.folder / "student.onnx", False))
    ]
    assert found[0].images == 48 and found[1] == found[2]
    data, finished = load_data(recipes.load(longer)), reload_product(run)
    trained = replace(data, mean=tuple(finished.data["mean"]), std=tuple(finished.data["std"]))
    assert trained.mean != data.mean
    assert found[0].top1 == pytest.approx(top1(logits(finished.product, trained.batches("test", 16)), data.test.labels))
    for which in (run.folder, run.folder / "student.onnx", run.folder / "float.onnx"):
        for wrong, has in ((recipe("large", size=20), "3 x 20 x 20"), (recipe("many", classes=5), "5")):
            with pytest.raises(UsageError, match=f"the data has .*{has}") as caught:
                evaluate_file_or_run(which, recipe=wrong, integer=False, device="cpu")
            assert ("3 x 16 x 16" if has != "5" else "4") in str(caught.value) and "INVALID" not in str(caught.value)
    with pytest.raises(UsageError, match="nowhere.yaml"):
        evaluate_file_or_run(run.folder, recipe=str(tmp_path / "nowhere.yaml"), integer=False, device="cpu")


def test_a_float_student_is_exported_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {**TINY, "method": {"name": "qat"}, "teachers": {}, "match": []}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**tiny, "student": {**TINY["student"], "quantize": "off"}}))
    made = Run.create(tmp_path / "run")
    train_recipe(recipes.load(tmp_path / "tiny.yaml", ("train.epochs=1",)), made, Machine("cpu", threads=1))
    main_or_exit(["export", str(made.folder)])
    out = capsys.readouterr().out
    assert "a float network; agrees with PyTorch" in out and "integer emulator" not in out
    report = json.loads((made.folder / "export.json").read_text())
    assert report["integer_layers"] == [] and "fc" in report["float_layers"] and report["agreement"] == 100
    assert metadata(made.folder / "student.onnx")["scheme"] == "float"
    assert export_run(made, input="uint8", layout="nhwc").agreement == 100
    main_or_exit(["report", str(made.folder)])
    assert "integer emulator" not in (made.folder / "report.html").read_text()


def test_onnxruntimes_own_quantization_beside(run: Run) -> None:
    report = benchmark_files([run.folder], against="ptq", batches=(1,), seconds=0.01, memory=True)
    rows = rows_of(report)
    files = [Path(row.file or "").name for row in rows]
    assert files == ["student.onnx", "ptq_u8s8.onnx", "ptq_default.onnx", "float.onnx"]
    student, ptq, default, floating = rows
    assert student.integer_convs == student.convs == ptq.integer_convs != floating.integer_convs == 0
    assert all(None not in (row.top1, row.speedup, row.peak_mb) for row in rows)
    assert ptq.bytes != default.bytes
    require_gates(report, Gates(max_drop=100, max_p50_ms=1e6))


def test_files_of_two_runs_stand_on_their_own_images_beside_their_own_float_files(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes.load(run.folder / "recipe.yaml", ("data.seed=7", "train.epochs=1"))
    other = Run.create(tmp_path / "other run")
    train_recipe(recipe, other, Machine("cpu", threads=1))
    export_run(other)
    shutil.copy(run.folder / "student.onnx", tmp_path / "alone.onnx")
    files = [run.folder, other.folder, tmp_path / "alone.onnx"]
    report = benchmark_files(files, batches=(1,), seconds=0.01)
    found = {Path(each.file or ""): each for each in rows_of(report)}
    for each in (run, other):
        student, floating = (found[each.folder / name] for name in ("student.onnx", "float.onnx"))
        assert student.top1 == evaluate_file_or_run(each.folder / "student.onnx", recipe=None, integer=False).top1
        assert student.beside == floating.beside == floating.file and floating.speedup == 1
        assert student.p50_ms and floating.p50_ms
        assert student.speedup == pytest.approx(floating.p50_ms / student.p50_ms)
        kept = json.loads((each.folder / "bench.json").read_text())
        assert str(each.folder / "student.onnx") in kept["judged"] and floating.to_json() in kept["rows"]
        assert not any(Path(row["file"]).parent == (run, other)[each is run].folder for row in kept["rows"])
    alone = found[tmp_path / "alone.onnx"]
    assert alone.top1 == found[run.folder / "student.onnx"].top1
    assert alone.beside == str(run.folder / "float.onnx")
    show(report)
    out = capsys.readouterr().out
    assert "other run/student.onnx beside other run/float.onnx: " in out and "\n run/student.onnx" in out


def row(**changes: Any) -> BenchRow:
    where = {"file": "s.onnx", "runtime": "onnxruntime", "beside": "f.onnx"}
    return BenchRow(**{**where, "batch": 1, "threads": 1, "p50_ms": 2.0, "top1": 90.0, "speedup": 1.5, **changes})


def report_of(*rows: BenchRow) -> BenchReport:
    return BenchReport("a processor", rows, ("s.onnx",))


FLOAT_ROW = row(file="f.onnx", p50_ms=3.0, top1=92.5, speedup=1.0)


@pytest.mark.parametrize(
    "gates",
    [{"min_top1": 90.5}, {"max_p50_ms": 1.9}, {"min_speedup": 1.6}, {"max_drop": 2.0}],
    ids=lambda gates: next(iter(gates)),
)
def test_a_gate_names_row_and_number(gates: dict[str, float], refused: Refused) -> None:
    report = report_of(row(), FLOAT_ROW)
    with refused(GateError, "bench.gate-missed") as caught:
        require_gates(report, Gates(**gates))
    assert caught.value.exit_code == 3
    require_gates(report, Gates(min_top1=90, max_p50_ms=2, min_speedup=1.5, max_drop=2.5))


def test_gates_are_about_onnxruntime() -> None:
    there = [row(runtime="openvino", speedup=0.5), row(file="f.onnx", runtime="openvino", speedup=1.0)]
    require_gates(report_of(row(), FLOAT_ROW, *there), Gates(min_speedup=1.2, max_drop=2.5))


def test_a_missed_gate_is_exit_code_3_behind_the_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", str(run.folder), "--batch", "1", "--seconds", "0.01", "--min-speedup", "1000", "--json"])
    assert end.value.code == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"] and err.startswith("error: ") and "asked for at least 1000" in err


def test_a_gate_on_what_was_not_measured_does_not_pass(refused: Refused) -> None:
    report = report_of(row(top1=None, speedup=None, beside=None))
    for gates in (Gates(min_top1=1), Gates(min_speedup=1), Gates(max_drop=1)):
        with refused(UsageError, "bench.gate-not-measured"):
            require_gates(report, gates)
    with refused(GateError, "bench.gate-missed"):
        require_gates(report_of(row(top1=float("nan"))), Gates(min_top1=1))
    require_gates(report, Gates())


def test_what_to_compare_with_has_to_be_there(run: Run, tmp_path: Path, refused: Refused) -> None:
    with refused(ExportError, "bench.unknown-counterpart"):
        benchmark_files([run.folder], against="ptqq")
    shutil.copy(run.folder / "student.onnx", tmp_path / "alone.onnx")
    with refused(ExportError, "bench.ptq-without-run"):
        benchmark_files([tmp_path / "alone.onnx"], against="ptq")


@pytest.mark.parametrize("bits", [2, 4])
def test_a_bit_exact_scheme_has_to_be_exact(
    bits: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    scheme = {"weights": bits, "activations": bits, "family": "pot", "exact": True}
    student = {**TINY["student"], "quantize": scheme}
    tiny = {**TINY, "method": {"name": "qat"}, "teachers": {}, "match": [], "student": student}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    made = Run.create(tmp_path / "run")
    train_recipe(recipes.load(tmp_path / "tiny.yaml", ("train.epochs=1",)), made, Machine("cpu", threads=1))
    main_or_exit(["export", str(made.folder)])
    assert re.search(r"fake quantization +100 % of the 32 test images, every logit", capsys.readouterr().out)
    report = json.loads((made.folder / "export.json").read_text())
    assert report["same_as_reference"] == 1 and report["top1_torch"] == report["top1_onnxruntime"]
    before = (made.folder / "student.onnx").read_bytes()
    monkeypatch.setattr("qkd.pipeline.export.logits", lambda *given: logits(*given) + 1e-6)
    with refused(GateError, "export.not-exact"):
        export_run(made)
    assert (made.folder / "student.onnx").read_bytes() == before


def main_or_exit(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
