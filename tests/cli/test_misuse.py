"""Files and runs that are broken, foreign or unfinished: one clear line, exit code 2 or 3, and nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from qkd import recipe as recipes
from qkd.cli.main import main
from qkd.engine.device import Machine
from qkd.pipeline.export import export_run
from qkd.pipeline.train import train_recipe
from qkd.storage.run import Run
from tests.support.tiny_runs import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, and everything that may be wrong with a run or a file."""
    home = tmp_path_factory.mktemp("misuse")
    tiny = {**TINY, "method": {"name": "qat"}, "teachers": {}, "match": []}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    run = Run.create(home / "good")
    train_recipe(recipes.load(home / "tiny.yaml", ("train.epochs=1",)), run, Machine("cpu", threads=1))
    for name in ("unfinished", "damaged", "headless"):
        shutil.copytree(home / "good", home / name)
    (home / "unfinished" / "product.safetensors").unlink()
    cut = (home / "damaged" / "product.safetensors").read_bytes()[:500]
    (home / "damaged" / "product.safetensors").write_bytes(cut)
    (home / "headless" / "recipe.yaml").unlink()
    export_run(run)
    (home / "text.onnx").write_text("no model")
    (home / "empty.onnx").touch()
    (home / "half.onnx").write_bytes((home / "good" / "student.onnx").read_bytes()[:-400])
    write_foreign(home)
    return home


def write_foreign(home: Path) -> None:
    def write(name: str, inputs: list[str], node: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> None:
        given = [helper.make_tensor_value_info(each, kind, ["N", 3, 16, 16]) for each in inputs]
        out = helper.make_tensor_value_info("y", kind, None if not inputs else ["N", 3, 16, 16])
        graph = helper.make_graph([node], "g", given, [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if not inputs:
            model.graph.output[0].type.tensor_type.shape.SetInParent()
        onnx.save(model, str(home / f"{name}.onnx"))

    write("foreign", ["x"], helper.make_node("Relu", ["x"], ["y"]))
    write("two", ["x", "z"], helper.make_node("Add", ["x", "z"], ["y"]))
    write("none", [], helper.make_node("Constant", [], ["y"], value_float=1.0))
    write("words", ["x"], helper.make_node("Identity", ["x"], ["y"]), TensorProto.STRING)
    write("unknown", ["x"], helper.make_node("Gelato", ["x"], ["y"], domain="elsewhere"))


QUICK = ("--seconds", "0.01", "--batch", "1")
INTEGER = ("--integer", "--data", "good/recipe.yaml")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("bench", "text.onnx", *QUICK), 2, "text.onnx: not a valid ONNX model"),
        (("bench", "empty.onnx", *QUICK), 2, "empty.onnx: not a valid ONNX model"),
        (("bench", "half.onnx", *QUICK), 2, "half.onnx: not a valid ONNX model"),
        (("bench", "two.onnx", *QUICK), 2, "two.onnx: has 2 inputs"),
        (("bench", "none.onnx", *QUICK), 2, "none.onnx: has 0 inputs"),
        (("bench", "words.onnx", *QUICK), 2, "words.onnx: its input is tensor(string)"),
        (("bench", "unknown.onnx", *QUICK), 2, "unknown.onnx: not a valid ONNX model: No opset"),
        (("bench", "missing.onnx", *QUICK), 2, "missing.onnx: no such file"),
        (("bench", "unfinished", *QUICK), 2, "`qkd export unfinished` writes it"),
        (("bench", "good", "--against", "other.onnx", *QUICK), 2, "other.onnx: no such file"),
        (("bench", "good", "--batch", "0"), 2, "'--batch': '0': give whole numbers from 1"),
        (("bench", "good", "--threads", "two"), 2, "'--threads': 'two': give whole numbers"),
        (("bench", "good", "--min-top1", "101", *QUICK), 3, "asked for at least 101"),
        (("bench", "good", "--max-p50-ms", "0.000001", *QUICK), 3, "asked for at most 1e-06"),
        (("bench", "foreign.onnx", "--min-top1", "1", *QUICK), 2, "no top-1 is known"),
        (("eval", "text.onnx", *INTEGER), 2, "text.onnx: not a valid ONNX model"),
        (("eval", "none.onnx", *INTEGER), 2, "none.onnx: has 0 inputs"),
        (("eval", "foreign.onnx", *INTEGER), 2, "foreign.onnx: written by an unnamed producer"),
        (("eval", "good/student.onnx", "--data", "other.yaml"), 2, "other.yaml"),
        (("eval", "foreign.onnx"), 2, "foreign.onnx: stands in no run folder"),
        (("export", "unfinished"), 2, "the run is not finished, `qkd train --resume` goes on with it"),
        (("export", "damaged"), 2, "product.safetensors: damaged"),
        (("export", "headless"), 2, "headless: not a run folder, it has no recipe.yaml"),
        (("export", "nowhere"), 2, "nowhere: no such folder"),
        (("export", "good", "-o", "good/float.onnx"), 2, "choose another with -o"),
        (("export", "good", "--layout", "nhwc"), 2, "add --input uint8"),
        (("export", "good", "--target", "litert", "--storage", "packed"), 2, "reads no weights stored in 2 bits"),
        (("export", "good", "--target", "coreml"), 2, "'coreml' is not one of 'onnxruntime', 'openvino', 'tensorrt'"),
        (("export", "good", "-o", "text.onnx/s.onnx"), 2, "cannot be written"),
    ],
)
def test_one_line_the_exit_code_and_nothing_changed(
    folder: Path,
    words: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = listing(folder)
    with pytest.raises(SystemExit) as end:
        main(words)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == code and len(lines) == 1 and message in lines[0], lines
    assert {name: size for name, size in listing(folder).items() if not name.endswith("bench.json")} == before


def test_a_model_from_elsewhere_is_timed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(("bench", "foreign.onnx", *QUICK))
    assert end.value.code == 0 and "foreign.onnx" in capsys.readouterr().out


def listing(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "bench.json")
    return {str(path): path.read_bytes() for path in files}
