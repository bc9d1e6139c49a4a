"""The command line as a person meets it: exit codes, one line an error, one JSON object on stdout."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from PIL import Image

from qkd.pipeline.evaluate import eval_images as images_of
from qkd.storage.run import Run
from tests.support.command_line import in_a_process, qkd
from tests.support.tiny_runs import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its exported, benched run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = qkd("train", "tiny.yaml", "--threads", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"run", "method", "top1", "float_top1", "val_top1", "epochs", "seconds", "seed"} <= result.keys()
    assert result["run"] == "runs/tiny"
    return folder


def test_export_then_bench_then_eval(trained: Path) -> None:
    done = qkd("export", "runs/tiny", "--json", "--require-integer", cwd=trained)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["float_layers"] == []
    assert report["equal_fraction"] == 1.0
    assert report["bytes"] < report["float_bytes"]
    assert abs(report["top1_onnxruntime"] - report["top1_torch"]) <= 100 / 32
    bench = qkd("bench", "runs/tiny", "--batch", "1", "--batch", "4,1", "--seconds", "0.1", "--json", cwd=trained)
    assert bench.returncode == 0, bench.stderr
    rows = json.loads(bench.stdout)["rows"]
    assert [row["batch"] for row in rows] == [1, 1, 4, 4]
    assert {Path(row["file"]).name for row in rows} == {"student.onnx", "float.onnx"}
    assert all(row["p50_ms"] > 0 and row["top1"] is not None for row in rows)
    for words in (["runs/tiny"], ["runs/tiny", "--integer"], ["runs/tiny/student.onnx"]):
        scored = qkd("eval", *words, "--json", cwd=trained)
        assert scored.returncode == 0, scored.stderr
        assert json.loads(scored.stdout)["images"] == 32
    assert json.loads(scored.stdout)["top1"] == pytest.approx(report["top1_onnxruntime"])


def test_report_and_tables_for_people(trained: Path) -> None:
    shown = qkd("export", "runs/tiny", cwd=trained)
    assert "equal to the integer emulator" in shown.stdout
    assert qkd("bench", "runs/tiny", "--seconds", "0.05", cwd=trained).returncode == 0
    report = qkd("report", "runs/tiny", cwd=trained)
    assert report.returncode == 0, report.stderr
    assert (trained / "runs/tiny/report.html").stat().st_size < 3_000_000


def test_a_second_run_gets_its_own_folder_and_resume_finds_the_newest(trained: Path) -> None:
    again = qkd("train", "tiny.yaml", "--threads", "1", "--max-steps", "2", "--json", cwd=trained)
    assert json.loads(again.stdout)["run"] == "runs/tiny-2"
    resumed = qkd("train", "tiny.yaml", "--threads", "1", "--resume", "--json", cwd=trained)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["run"] == "runs/tiny-2"
    refused = qkd("train", "tiny.yaml", "train.epochs=9", "--resume", cwd=trained)
    assert refused.returncode == 2
    assert "train.epochs was 3, is 9" in refused.stderr


BAD = [
    (["train", "nothing.yaml"], 2, "nothing.yaml"),
    (["train", "tiny.yaml", "train.epohcs=3"], 2, "epochs"),
    (["train", "tiny.yaml", "train.epochs=many"], 2, "epochs"),
    (["check", "tiny.yaml", "method.name=cmtdk"], 2, "did you mean 'cmtkd'?"),
    (["check", "tiny.yaml", "student.build=resnet9"], 2, "did you mean 'resnet"),
    (["check", "tiny.yaml", "match=[layr1]"], 2, "did you mean 'layer1'?"),
    (["check", "tiny.yaml", "teachers.eight.width=8", "match=[flatten]"], 2, "shared.flatten 32: only feature maps"),
    (["check", "tiny.yaml", "data={name: folder, root: nowhere}"], 2, "nowhere"),
    (["check", "tiny.yaml", "student.quantize=w9a2"], 2, "w9a2"),
    (["export", "runs/none"], 2, "runs/none"),
    (["bench", "none.onnx"], 2, "none.onnx"),
    (["bench", "none.onnx", "--batch", "x"], 2, "whole numbers"),
    (["eval", "none.onnx"], 2, "none.onnx"),
    (["frobnicate"], 2, "frobnicate"),
    (["train"], 2, "RECIPE"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_input_gets_one_clear_line(tmp_path: Path, words: Sequence[str], code: int, message: str) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = qkd(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_image_is_named_and_leaves_no_run_behind(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "good.png")
    (tmp_path / "images/train/cat/broken.png").write_text("no image")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {"name": "folder", "root": "images"}}))
    done = qkd("train", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert re.match(r"error: tiny.yaml:\d+: data: 1 unreadable .*images/train/cat/broken.png", done.stderr)
    assert not list((tmp_path / "runs").iterdir())
    assert (tmp_path / "images/train/cat/broken.png").read_text() == "no image"


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), MemoryError()]
)
def test_too_little_memory_is_no_bug(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(*_: object) -> None:
        raise error

    monkeypatch.setattr("qkd.assembly.inputs.load_and_assemble", checked)
    done = qkd("check", "digits_qat_w2a2", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: too little memory: .*; a smaller data.size .*\n", done.stderr)
    assert "report" not in done.stderr


def test_a_run_whose_images_are_gone_has_none_to_show(tmp_path: Path) -> None:
    folder = {"name": "folder", "root": str(tmp_path / "gone")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TINY, "data": folder}))
    assert images_of(Run.open(tmp_path)) is None


def test_fewer_bits_than_the_student_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = qkd("check", "tiny.yaml", "student.quantize=w6a6", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert "teachers.four" in done.stderr


def test_check_and_explain(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert json.loads(qkd("check", "tiny.yaml", "--json", cwd=tmp_path).stdout) == {"problems": [], "plan": ["train"]}
    text = qkd("explain", "tiny.yaml", cwd=tmp_path).stdout
    for line in (
        "exchange.importance (rate x 0.1)",
        "100 x attention/student.layer1<shared.layer1",
        "0.5 x imitate/student<ensemble",
    ):
        assert line in text
    printed = tmp_path / "printed.yaml"
    printed.write_text(qkd("check", "tiny.yaml", "--print", cwd=tmp_path).stdout)
    assert qkd("check", "printed.yaml", cwd=tmp_path).returncode == 0


def test_init_writes_once(tmp_path: Path) -> None:
    assert qkd("init", cwd=tmp_path).returncode == 0
    assert qkd("check", "digits_cmtkd_w2a2.yaml", cwd=tmp_path).returncode == 0
    again = in_a_process("init", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.parametrize("what", ["methods", "networks", "schemes", "datasets", "recipes"])
def test_ls(tmp_path: Path, what: str) -> None:
    rows = json.loads(qkd("ls", what, "--json", cwd=tmp_path).stdout)[what]
    assert rows and all(row["name"] and row["about"] for row in rows)


def test_layers_schema_env(tmp_path: Path) -> None:
    layers = qkd("layers", "resnet8", cwd=tmp_path).stdout
    assert "layer2.0.conv1" in layers and "layer1" in layers.splitlines()[-1]
    assert json.loads(qkd("schema", cwd=tmp_path).stdout)["properties"]
    assert "onnxruntime" in qkd("env", cwd=tmp_path).stdout


def test_help_is_quick(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert in_a_process("--help", cwd=tmp_path).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
