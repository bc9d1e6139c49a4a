"""The report of a run: a page that loads nothing, holds what the files hold, and leaves out what is missing."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from qkd import recipe as recipes
from qkd.assembly.assemble import Assembly, assemble
from qkd.cli.report import report
from qkd.distill import targets
from qkd.distill.heads import Head
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import Term, attend, imitate, label
from qkd.errors import UsageError
from qkd.methods import METHODS
from qkd.report import formatting, headline, page, tables, training_curves, weight_stats, write
from qkd.report.charts import MOST_POINTS, WIDTH, Bar, Chart, Series, Stack, bar_chart, line_chart, stack_chart, thinned
from qkd.report.diagram import draw
from qkd.report.diagram_layout import lay_out
from qkd.report.diagram_model import diagram_of
from qkd.report.run_data import bits, read_run
from qkd.report.svg import Scale, element
from qkd.storage.run import Run
from qkd.tasks.spec import DataSpec

RECIPE = """\
# A recipe of a test: https://example.org is no address to load <script>alert(1)</script>
method:   {name: cmtkd, temperature: 4}
student:  {build: resnet8, width: 4, quantize: w2a2, start_from: scratch}
teachers:
  four:   {build: resnet8, width: 4, quantize: w4a4, start_from: scratch}
  eight:  {build: resnet8, width: 4, quantize: w8a8, start_from: scratch}
match:    [layer1, layer2]
data:     {name: digits, batch: 64, size: 16}
train:    {epochs: 3}
"""
TERMS = {
    "label/student": (2.0, 0.02),
    "imitate/student<ensemble": (1.5, 0.4),
    "label/shared": (1.0, 0.1),
    "imitate/shared<ensemble": (0.6, 0.3),
    "attention/student.layer1<shared.layer1": (4e-3, 2e-3),
    "attention/student.layer2<shared.layer2": (3e-3, 1e-3),
}
RESULT = {
    "run": "demo",
    "method": "cmtkd",
    "top1": 95.62,
    "float_top1": 98.34,
    "val_top1": 96.0,
    "epochs": 3,
    "seconds": 61.0,
    "seed": 7,
    "before_top1": 41.25,
    "training_seconds": 50.5,
    "steps": 51,
    "parts": {"student": 95.62, "four": 96.9, "eight": 97.3, "shared": 97.8},
    "ece": 0.0213,
    "cost": {
        "peak_memory_mb": 1234.5,
        "batch": 64,
        "participants": {"student": {"parameters": 78114, "forward_ms": 14.04, "learn_ms": 44.16}, "four": {}},
    },
    "finished": True,
    "combined": {
        "part": "shared",
        "top1": 97.8,
        "members": ["four", "eight"],
        "best_member": "eight",
        "best_top1": 97.3,
        "difference": 0.5,
        "standard_error": 0.6,
        "disagreement": 1.5,
    },
    "gradients": {
        "four": {"beside_student": 0.015, "terms": {"label/shared": 0.4}, "hardly_learns": True},
        "eight": {"beside_student": 0.5, "terms": {"label/shared": 0.4}, "hardly_learns": False},
    },
}
EXPORT = {
    "file": "runs/demo/student.onnx",
    "bytes": 100_000,
    "float_bytes": 410_000,
    "storage": "int8",
    "images": 359,
    "minimum_onnxruntime": "1.19",
    "census": {"QLinearConv": 9, "QuantizeLinear": 1},
    "integer_layers": ["conv1", "fc"],
    "float_layers": [],
    "equal_fraction": 1.0,
    "top1_onnxruntime": 95.62,
    "top1_torch": 95.62,
    "agreement": 99.998,
}


def bench_row(file: str, batch: int, milliseconds: float, speedup: float) -> dict[str, Any]:
    return {
        "file": f"runs/demo/{file}",
        "batch": batch,
        "threads": 1,
        "p50_ms": milliseconds,
        "p95_ms": 1.2 * milliseconds,
        "images_per_second": 1e3 * batch / milliseconds,
        "bytes": 100_000,
        "speedup": speedup,
        "top1": 95.6,
    }


BENCH = {
    "processor": "A Processor (VNNI)",
    "rows": [
        bench_row("student.onnx", 8, 1.0, 2.5),
        bench_row("student.onnx", 1, 0.25, 1.6),
        bench_row("float.onnx", 8, 2.5, 1.0),
        bench_row("float.onnx", 1, 0.4, 1.0),
    ],
}
ENVIRONMENT = {
    "qkd": "0.1.0",
    "torch": "2.15",
    "threads": 1,
    "cuda": None,
    "command": "qkd train x.yaml --threads 1 seed=7",
}
DATA = {
    "shape": [1, 16, 16],
    "labels": [str(i) for i in range(10)],
    "mean": [0.3],
    "std": [0.3],
    "images": {"test": 359},
}
FILES = (
    "result.json",
    "export.json",
    "bench.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "recipe.orig.yaml",
)


def epoch_line(number: int, last: int = 3) -> dict[str, Any]:
    at = (number - 1) / (last - 1)
    losses = {f"train/loss/{name}": start + (end - start) * at for name, (start, end) in TERMS.items()}
    importance = {f"importance/{stage}/four": 0.5 - 0.05 * number for stage in ("layer1", "layer2")}
    importance |= {f"importance/{stage}/eight": 0.5 + 0.05 * number for stage in ("layer1", "layer2")}
    gradients = {"gradient/student/label/student": 0.7, "gradient/student/imitate/student<ensemble": 0.3}
    gradients |= {"gradient/four/label/shared": 0.4, "gradient/four/imitate/shared<ensemble": 0.6}
    gradients |= {"gradient_norm/student": 2.0, "gradient_norm/four": 0.06 / number, "gradient_norm/eight": 1.0}
    head = {"phase": "train", "epoch": number, "epochs": last, "steps": 17 * number}
    return {**head, **losses, **gradients, "val/top1": 80.0 + 5 * number, **importance, "seconds": 3.0 * number}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training, export and bench leave it, with a product of the recipe's networks."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    folder.mkdir()
    (folder / "recipe.orig.yaml").write_text(RECIPE)
    recipe = recipes.load(folder / "recipe.orig.yaml")
    run = Run(folder)
    run.write_file("recipe.yaml", recipes.dump(recipe))
    for name, content in (
        ("result", RESULT),
        ("export", EXPORT),
        ("bench", BENCH),
        ("environment", ENVIRONMENT),
        ("data", DATA),
    ):
        run.write_json(f"{name}.json", content)
    for line in ({"phase": "before", "steps": 0, "test/top1": 41.25}, *map(epoch_line, (1, 2, 3))):
        run.append_metrics(line)
    run.save_product(calibrated(assemble(recipe, DataSpec((1, 16, 16), 10))).state_dict())
    return folder


def calibrated(assembly: Assembly) -> torch.nn.Module:
    from qkd.quantizers import calibrate

    product = assembly.product()
    calibrate(product, [torch.randn(8, 1, 16, 16)])  # type: ignore[arg-type]
    return product


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "demo"))


@pytest.fixture(scope="module")
def content(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    copy = Path(shutil.copytree(finished, tmp_path_factory.mktemp("page") / "demo"))
    return write(read_run(Run(copy))).read_text()


class Reader(HTMLParser):
    """Tags with their attributes, and the text that is shown."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, text: str) -> None:
        if "style" not in self.open:
            self.shown.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.shown))


def test_page_loads_nothing_and_runs_nothing(content: str) -> None:
    read = Reader(content)
    assert not read.open
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    attributes = [(name, value or "") for _, found in read.tags for name, value in found.items()]
    assert not [
        name for name, _ in attributes if name in ("src", "href", "xlink:href", "action") or name.startswith("on")
    ]
    style = re.search(r"<style>(.*?)</style>", content, re.DOTALL)
    assert style is not None
    assert "@import" not in content
    assert set(re.findall(r"url\(([^)]*)\)", content)) <= {"#link-head", "#bus-head"}
    assert re.search(r"default-src 'none'", content)
    assert len(content.encode()) < 3e6


def test_every_drawing_has_a_description(content: str) -> None:
    drawings = [found for tag, found in Reader(content).tags if tag == "svg" and found.get("role") == "img"]
    assert len(drawings) >= 9  # plan, accuracy, three kinds of loss, two importances, gradients, size, latency
    assert all(len(found["aria-label"] or "") > 20 for found in drawings)
    hidden = [found for tag, found in Reader(content).tags if tag == "svg" and found.get("role") != "img"]
    assert all(found.get("aria-hidden") == "true" for found in hidden)


def test_a_hollow_collaboration_is_seen(content: str, folder: Path) -> None:
    shown = Reader(content).text
    assert (
        "Combined teacher (shared: 97.80 %) is not better than its best member (eight: 97.30 %): +0.50 points, "
        "standard error 0.60; two members disagree on 1.5 % of the test images." in shown
    )
    assert "Importance moved by at most 0.15 from uniform." in shown
    assert (
        "Gradient beside the student's: four 1.5 %: this teacher hardly learns; raise the weight of label/shared."
        in (shown)
    )
    drawings = [found["aria-label"] or "" for tag, found in Reader(content).tags if tag == "svg" and "role" in found]
    assert "Gradient beside the student's, over epochs: four from 3 % to 1 %; eight from 50 % to 50 %" in drawings
    (folder / "metrics.jsonl").write_text("")
    result = {key: value for key, value in RESULT.items() if key not in ("combined", "gradients")}
    (folder / "result.json").write_text(json.dumps(result))
    earlier = Reader(write(read_run(Run(folder))).read_text()).text
    assert not re.search("best member|hardly|from uniform|beside the student", earlier)


def test_page_follows_the_colours_of_the_system_and_the_width_of_the_screen(content: str) -> None:
    assert "prefers-color-scheme: dark" in content
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in content


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_contrast_with_their_background(content: str, scheme: int) -> None:
    tokens = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", content.split(":root {")[scheme + 1]))
    light = {name: luminance(colour) for name, colour in tokens.items()}

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light[one], light[other]))
        return (high + 0.05) / (low + 0.05)

    for behind in ("bg", "card", "soft"):
        assert all(contrast(name, behind) >= 4.5 for name in ("ink", "muted", "accent"))
    series = [f"c{i}" for i in range(8)]
    assert all(contrast(name, "card") >= 4.5 and contrast("inside", name) >= 4.5 for name in series)


def test_identifiers_are_unique(content: str) -> None:
    found = [attributes["id"] for _, attributes in Reader(content).tags if "id" in attributes]
    assert sorted(found) == sorted(set(found)) == ["bus-head", "link-head"]


def test_summary_holds_what_the_files_hold(finished: Path) -> None:
    assert headline.summary(read_run(Run(finished))) == (
        "2-bit resnet8 (4 weight levels): 95.6 % on test (float 98.3 %); the ONNX file is 4.1x smaller and 1.6x faster, "
        "equal to the integer emulator on 100 % of the test images."
    )


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("export.json", {"equal_fraction": 0.99999}, "on 99.99 % of the test images."),
        ("export.json", {"bytes": 820_000}, "2.0x larger and 1.6x faster"),
        ("export.json", {"top1_onnxruntime": 94.01}, "(float 98.3 %), 94.0 % in onnxruntime; the"),
        ("export.json", {"float_layers": ["fc"]}, "of the test images, 1 layer in float."),
        ("bench.json", {"rows": [bench_row("student.onnx", 1, 0.5, 0.8)]}, "4.1x smaller and 1.2x slower"),
        ("bench.json", {"rows": []}, "the ONNX file is 4.1x smaller, equal"),
        ("result.json", {"float_top1": None}, "95.6 % on test; the"),
        ("result.json", {"before_top1": 95.8}, "95.6 % on test (float 98.3 %), 95.8 % before training; the"),
        ("result.json", {"finished": False}, "(float 98.3 %), training stopped early; the"),
    ],
)
def test_summary_follows_every_number(folder: Path, name: str, change: dict[str, Any], expected: str) -> None:
    run = Run(folder)
    run.write_json(name, {**run.read_json(name), **change})
    assert expected in headline.summary(read_run(run))


def test_summary_of_a_run_that_is_not_finished(folder: Path) -> None:
    for name in ("result.json", "export.json", "bench.json"):
        (folder / name).unlink()
    summary = headline.summary(read_run(Run(folder)))
    assert summary == "2-bit resnet8 (4 weight levels): not finished, 3 of 3 epochs done, 95.0 % on validation so far."
    (folder / "metrics.jsonl").unlink()
    assert headline.summary(read_run(Run(folder))) == "2-bit resnet8 (4 weight levels): not trained yet."


def test_numbers_of_the_files_stand_on_the_page(content: str) -> None:
    shown = Reader(content).text
    for expected in ("98.34 %", "41.25 %", "95.62 %", "97.80 %", "100.0 kB", "410.0 kB", "1.60x", "A Processor (VNNI)"):
        assert expected in shown
    assert "QLinearConv ×9" in shown
    assert "Expected calibration error after training: 2.1 %." in shown
    assert "one batch of 64 images. All of training took 50 s and at most 1,234 MiB of memory." in shown
    assert "student 78,114 14.0 44.2" in shown
    assert "99.99 % of the test images" in shown
    assert "Kept: epoch 3, 95.0 %" in shown


def test_what_comes_from_files_stays_text(folder: Path) -> None:
    bad = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
    run = Run(folder)
    run.append_metrics(
        {**epoch_line(3), "epoch": 4, "phase": bad, f"train/loss/{bad}": 1.0, f"importance/layer1/{bad}": 0.1}
    )
    run.append_metrics({**epoch_line(3), "epoch": 5, f"gradient/{bad}/label/{bad}": 1.0})
    run.write_json("result.json", {**RESULT, "method": bad, "parts": {bad: 50.0}})
    run.write_json("environment.json", {"command": bad, bad: bad})
    run.write_json("export.json", {**EXPORT, "float_layers": [bad], "reasons": {bad: bad}, "census": {bad: 3}})
    run.write_json("bench.json", {"processor": bad, "rows": [{**bench_row("student.onnx", 1, 1.0, 1.0), "file": bad}]})
    (folder / "recipe.yaml").write_text(f"method: {{name: '{bad[:20]}'}}\nstudent: {{build: \"{bad}\"}}\n")
    written = write(read_run(run)).read_text()
    assert {tag for tag, _ in Reader(written).tags}.isdisjoint({"script", "img"})
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written  # the comment of the recipe
    assert html.escape(bad, quote=False) in written.replace("&#39;", "'")


@pytest.mark.parametrize("name", [*FILES, "product.safetensors"])
def test_a_missing_file_leaves_out_its_section_only(folder: Path, name: str) -> None:
    (folder / name).unlink()
    read = Reader(write(read_run(Run(folder))).read_text())
    assert not read.open
    headings = {
        "export.json": "layers in integers",
        "bench.json": "Median latency",
        "metrics.jsonl": "Importance at layer1",
        "product.safetensors": "at the ends",
        "recipe.orig.yaml": "The recipe as it was written",
        "data.json": "Phase train, 3 epochs",
    }
    for file, heading in headings.items():
        needed = (
            {file, "data.json"} if heading == "at the ends" else {file}
        )  # what rounding did is read off the networks
        assert (heading in read.text) == (name not in needed)


def test_an_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    read = Reader(write(read_run(Run(tmp_path))).read_text())
    assert "not trained yet" in read.text
    assert "cannot be drawn" in read.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "rubbish", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe{}", b'{"rows": 3, "parts": 4, "cost": 5, "images": []}']
)
def test_a_damaged_file_is_only_absent(
    folder: Path, name: str, rubbish: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "assemble_again", lambda found: "not asked for")
    (folder / name).write_bytes(rubbish)
    assert not Reader(write(read_run(Run(folder))).read_text()).open


def test_half_a_line_of_metrics_is_skipped(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(epoch_line(3))[:100])
    assert len(read_run(Run(folder)).epochs) == 3


def test_a_recipe_whose_code_is_gone_has_a_page(folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text().replace("build: resnet8", "build: ./gone.py:Net", 1)
    (folder / "recipe.yaml").write_text(text)
    shown = Reader(write(read_run(Run(folder))).read_text()).text
    assert "cannot be drawn" in shown
    assert "gone.py" in shown
    assert "2-bit Net (4 weight levels): 95.6 % on test" in shown


def test_writing_again_replaces_the_page_and_leaves_nothing_beside_it(folder: Path) -> None:
    (folder / "report.html").write_text("old")
    done = CliRunner().invoke(report, [str(folder)], catch_exceptions=False)
    assert done.output.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert not list(folder.glob(".*"))


def test_diagram_shows_every_part_and_weight(content: str) -> None:
    labels = [found["aria-label"] or "" for _, found in Reader(content).tags if found.get("role") == "img"]
    plan = next(words for words in labels if words.startswith("Parts: "))
    for expected in ("four (resnet8 w4a4, learns", "eight (resnet8 w8a8", "student (resnet8 w2a2", "shared (fuse"):
        assert expected in plan
    assert "student.layer1 learns from shared.layer1 by attention, weight 100" in plan
    assert "student learns from ensemble of shared, student by imitate, weight 0.5" in plan
    assert "four, eight exchange features at layer1" in plan
    shown = Reader(content).text
    assert "35.0 %" in shown  # the importance that the teacher named four ended with
    assert "exported" in shown


@pytest.fixture(scope="module")
def recipe(finished: Path) -> recipes.Recipe:
    return recipes.load(finished / "recipe.yaml")


def diagram(recipe: recipes.Recipe, *terms: Any, learners: tuple[str, ...] = ("student",)) -> Any:
    setup = Setup("student", tuple(recipe.teachers), ("layer1", "layer2"), 10, {})
    step = Step(learners, terms)
    return diagram_of(recipe, Assembly(None, Plan((Phase("train", (step,)),)), setup, None), step)  # type: ignore[arg-type]


def arrows(drawing: str) -> list[tuple[float, ...]]:
    found = re.findall(r'<path d="M([-\d.]+) ([-\d.]+)L([-\d.]+) ([-\d.]+)" class="link (?:arrow|both)">', drawing)
    return [tuple(map(float, numbers)) for numbers in found]


def test_parts_that_do_not_run_are_not_drawn_and_frozen_ones_are_marked(recipe: recipes.Recipe) -> None:
    shown = diagram(recipe, label("student"), imitate("student", targets.one(Tap("four")), temperature=4) * 0.9)
    assert [(lane.part, lane.state) for lane in shown.lanes] == [("four", "frozen"), ("student", "learns")]
    ((x1, y1, x2, y2),) = [arrow for arrow in arrows(draw(shown)) if arrow[0] == arrow[2]]
    assert x1 == x2
    assert y1 < y2  # from the teacher down to the student


def test_pupils_that_teach_each_other_have_arrows_of_their_own(recipe: recipes.Recipe) -> None:
    pairs = [("student", "four"), ("four", "student"), ("student", "eight"), ("eight", "student"), ("four", "eight")]
    terms = [imitate(a, targets.one(Tap(b)), temperature=1) for a, b in pairs]
    found = arrows(draw(diagram(recipe, *terms, learners=("student", "four", "eight"))))
    assert len(found) == 3  # who teaches each other alike shares an arrow with two heads
    for i, (x, top, _, bottom) in enumerate(found):
        for other_x, other_top, _, other_bottom in found[i + 1 :]:
            apart = min(top, bottom) >= max(other_top, other_bottom) or max(top, bottom) <= min(other_top, other_bottom)
            assert apart or abs(x - other_x) > 8


def test_a_shared_target_is_drawn_once_and_points_at_pupils_only(recipe: recipes.Recipe) -> None:
    mean = targets.mean([Tap("four"), Tap("eight")])
    shown = diagram(recipe, imitate("student", mean, temperature=4) * (lambda progress: progress))
    drawing = draw(shown)
    assert drawing.count('class="target"') == 1
    assert shown.links[0].weight == "0..1"
    layout = lay_out(shown)
    into_student = [arrow for arrow in arrows(drawing) if abs(arrow[3] - layout.node(Tap("student"))[1]) < 12]
    assert len(into_student) == 1


def test_arrows_may_lead_from_one_layer_to_another(recipe: recipes.Recipe) -> None:
    shown = diagram(recipe, attend(Tap("student", "layer1"), Tap("four", "layer2")))
    ((x1, _, x2, _),) = arrows(draw(shown))
    layout = lay_out(shown)
    assert (x1, x2) == pytest.approx((layout.columns["layer2"], layout.columns["layer1"]), abs=0.01)


def test_heads_that_read_heads_are_drawn_and_the_exported_one_is_marked(recipe: recipes.Recipe) -> None:
    inner = Head("inner", [Tap("student"), Tap("four")], torch.nn.Linear(20, 10), about="joined, of two")
    outer = Head("outer", [Tap("inner")], torch.nn.Identity(), about="copy")
    step = Step(["student", "inner"], [label("student"), label("inner")])
    plan = Plan((Phase("train", (step,)),), heads=(inner, outer), product="outer")
    setup = Setup("student", tuple(recipe.teachers), (), 10, {})
    shown = diagram_of(recipe, Assembly(None, plan, setup, None), step)  # type: ignore[arg-type]
    assert [(lane.part, lane.about, lane.state, lane.product) for lane in shown.lanes] == [
        ("four", "resnet8 w4a4", "frozen", False),
        ("inner", "joined", "learns", False),
        ("outer", "copy", "", True),
        ("student", "resnet8 w2a2 (4 levels)", "learns", False),
    ]
    assert draw(shown).count("exported") == 1


def test_a_term_without_a_source_stands_with_its_part(recipe: recipes.Recipe) -> None:
    term = Term("anchor", "student", (Tap("student", "anchor"),), lambda moved, batch: moved, weight=0.25)
    assert "anchor ×0.25" in draw(diagram(recipe, label("student"), term))


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_of_every_method_can_be_drawn(finished: Path, method: str) -> None:
    for teachers in (["four", "eight"], ["four"]):
        only = ["teachers={four: {build: resnet8, width: 4, quantize: w4a4}}"] if len(teachers) == 1 else []
        starts = ["student.start_from=float"]
        try:
            found = recipes.load(finished / "recipe.orig.yaml", [f"method={{name: {method}}}", *starts, *only])
            assembly = assemble(found, DataSpec((1, 16, 16), 10))
        except UsageError:
            continue
        for phase in assembly.plan.phases:
            for step in phase.steps:
                shown = diagram_of(found, assembly, step)
                drawing = html.unescape(draw(shown))
                assert all(f"×{link.weight}" in drawing for link in shown.links)
                assert {link.pupil.part for link in shown.links} <= {lane.part for lane in shown.lanes}
        return
    pytest.skip(f"{method} asks for more than this recipe has")


def places(drawing: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.e]+)" cy="([-\d.e]+)"', drawing)]


@pytest.mark.parametrize("seed", range(20))
def test_lines_stay_inside_their_frame(seed: int) -> None:
    draw_from = random.Random(seed)
    size = 10.0 ** draw_from.randint(-6, 6)
    values = [draw_from.choice([draw_from.uniform(-size, size), abs(draw_from.gauss(0, size)), 0.0]) for _ in range(30)]
    drawing = line_chart(Chart("a", (Series("s", tuple(enumerate(values))),)))  # type: ignore[arg-type]
    assert len(places(drawing)) == 30
    for x, y in places(drawing):
        assert 46 <= x <= 350
        assert 11.9 <= y <= 170.1


def test_lines_rise_with_their_values_on_both_scales() -> None:
    for values in ([1.0, 2.0, 3.0], [1e-4, 1e-2, 1.0]):
        heights = [y for _, y in places(line_chart(Chart("a", (Series("s", tuple(enumerate(values))),))))]  # type: ignore[arg-type]
        assert heights == sorted(heights, reverse=True)
        assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], rel=1e-3)


def test_charts_of_odd_series() -> None:
    assert line_chart(Chart("a", (Series("s", ()),))) == ""
    assert line_chart(Chart("a", (Series("s", ((1.0, math.nan), (2.0, math.inf))),))) == ""
    assert len(places(line_chart(Chart("a", (Series("s", ((1.0, 5.0), (2.0, math.nan))),))))) == 1
    assert stack_chart(Stack("a", {}, {})) == ""
    assert bar_chart("a", {}) == ""


def test_many_points_are_thinned() -> None:
    points = [(float(i), float(i)) for i in range(5001)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:100]) == points[:100]


def test_columns_of_shares_fill_the_frame() -> None:
    drawing = stack_chart(Stack("a", {"x": {1.0: 0.3, 2.0: 0.9}, "y": {1.0: 0.7}}, {"x": 0, "y": 1}))
    heights = [float(high) for high in re.findall(r'height="([\d.]+)"', drawing)]
    assert len(heights) == 3
    assert heights[0] + heights[1] == pytest.approx(heights[2] - 1, abs=0.01)  # a gap of one between two parts
    assert heights[0] / heights[1] == pytest.approx(3 / 7, abs=0.02)


def test_bars_are_as_long_as_their_values() -> None:
    drawing = bar_chart("a", {"g": [Bar("one", 1.0, "1", "ours"), Bar("four", 4.0, "4", "theirs")]})
    one, four = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawing))
    assert four == pytest.approx(4 * one)


def test_the_value_of_a_bar_stays_in_the_chart() -> None:
    shown = "0.0262 ms, 12.68x"  # the longest bar has the longest note where the exported file is the slower one
    drawing = bar_chart("a", {"g": [Bar("student", 4.0, shown, "ours"), Bar("float", 1.0, "1.0 ms", "theirs")]})
    begins = max(float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*class="note"', drawing))
    assert begins + 7 * len(shown) <= WIDTH


@pytest.mark.parametrize("wide", [8, 12])
def test_what_an_exchange_learns_ends_before_its_arrows(recipe: recipes.Recipe, wide: int) -> None:
    teachers = {**recipe.teachers, "eight": recipe.teachers["eight"].model_copy(update={"options": {"width": wide}})}
    assembly = assemble(recipe.model_copy(update={"teachers": teachers}), DataSpec((1, 16, 16), 10))
    (step,) = assembly.plan.phases[0].steps
    lanes = diagram_of(recipe, assembly, step, top1={"shared": 100.0}).lanes
    shared = next(lane for lane in lanes if lane.part == "shared")
    assert shared.about == "fuse · 100.0 %"
    assert shared.state.startswith("learns") and len(shared.state) <= len("learns importance")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.36), (-5, 5e6), (1e-9, 2e-9), (97.1, 99.9)])
def test_ticks_are_round_few_and_within_the_range(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_elements_escape_text_and_attributes() -> None:
    made = element("text", "<b>&", aria_label='"><script>', stroke_width=1.5)
    assert made == '<text aria-label="&#34;&gt;&lt;script&gt;" stroke-width="1.5">&lt;b&gt;&amp;</text>'


def test_phases_have_borders() -> None:
    lines = [{"phase": "one", "epoch": 1}, {"phase": "one", "epoch": 2}, {"phase": "two", "epoch": 1}]
    assert training_curves.borders(lines) == {1.0: "one", 2.5: "two"}
    assert training_curves.borders(lines[:2]) == {}


def test_a_long_table_of_numbers_is_shortened_but_keeps_its_end(folder: Path) -> None:
    run = Run(folder)
    for number in range(4, 400):
        run.append_metrics({"phase": "train", "epoch": number, "val/top1": 90.0 + number / 100})
    table = training_curves.numbers(read_run(run), ["val/"])
    assert table is not None
    assert len(table.rows) <= training_curves.MOST_ROWS + 1
    assert table.rows[-1][:3] == ["399", "train", "93.99"]
    assert len(write(read_run(run)).read_bytes()) < 3e6


def test_numbers_claim_no_more_than_was_measured() -> None:
    assert formatting.share(1.0) == "100 %"
    for number in range(1, 2000):
        assert formatting.share(1 - 10.0 ** -(number / 150)) != "100 %"
    assert formatting.times(1.001, "faster", "slower") == "neither faster nor slower"
    assert formatting.times(0.5, "faster", "slower") == "2.0x slower"
    assert formatting.times(1.04, "faster", "slower") == "1.04x faster"
    assert [formatting.size(n) for n in (999, 94_399, 44_700_000)] == ["999 bytes", "94.4 kB", "44.7 MB"]
    assert [formatting.duration(s) for s in (33, 100, 600, 3700, 7190)] == [
        "33 s",
        "100 s",
        "10 min",
        "1 h 2 min",
        "2 h 0 min",
    ]
    assert [formatting.milliseconds(v) for v in (0.035472, 1.0, 99.96, 1234.5)] == [
        "0.0355 ms",
        "1.00 ms",
        "100 ms",
        "1,234 ms",
    ]


def test_schemes_are_read_long_and_short() -> None:
    assert bits({"quantize": "w2a4"}) == bits({"quantize": {"weights": 2, "activations": 4}}) == (2, 4)
    assert bits({"quantize": "off"}) is bits({}) is None


def test_commands_repeat_the_run(folder: Path) -> None:
    odd = folder.rename(folder.with_name("my runs"))
    lines = tables.commands(read_run(Run(odd)))
    assert lines[0] == f"qkd train '{odd}/recipe.yaml' --out '{odd}-again' --threads 1"
    assert lines[1] == f"qkd export '{odd}-again'"


def test_rounding_errors_shrink_with_bits(finished: Path, recipe: recipes.Recipe) -> None:
    found = weight_stats.weights(read_run(Run(finished)), assemble(recipe, DataSpec((1, 16, 16), 10)))
    assert found is not None
    errors = {2: [], 8: []}  # type: dict[int, list[float]]
    for row in found.rows:
        assert row.error is not None
        assert row.ends is not None
        assert row.zeros is not None
        errors[row.bits].append(row.error)
        if row.bits == 2:  # codes -3, -1, 1, 3
            assert (row.levels, row.zeros) == (4, 0) and 0 < row.ends < 1
    assert max(errors[8]) < 0.05 < 0.2 < min(errors[2])
    assert {bits for bits, _ in found.activations} == {2, 8}


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<!doctype html><body><p id="found"></p>{frames}<script>
window.onload = () => {{
  const wide = [...document.querySelectorAll("iframe")].map(frame => {{
    const root = frame.contentDocument.documentElement;
    return [frame.clientWidth, root.scrollWidth, root.scrollHeight, frame.contentDocument.querySelectorAll("svg.chart").length];
  }});
  document.getElementById("found").textContent = JSON.stringify(wide);
}};
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_page_fits_a_desktop_and_a_phone(content: str, tmp_path: Path) -> None:
    source = html.escape(content)
    frames = "".join(
        f'<iframe srcdoc="{source}" style="width:{width}px;height:900px;border:0"></iframe>' for width in (1280, 390)
    )
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(frames=frames))
    quiet = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    command = [str(BROWSER), "--headless", *quiet.split(), "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", probe.as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser takes too long here")
    written = re.search(r'<p id="found">(\[.*?\])</p>', done.stdout)
    if written is None:
        pytest.skip(f"the browser does not start here: {done.stderr[-200:]}")
    assert "CONSOLE" not in done.stderr
    for asked, found, high, drawings in json.loads(written[1]):
        assert found <= asked, f"wider than {asked} pixels"
        assert high > 1500
        assert drawings >= 9


def test_a_view_of_a_network_is_shown_as_one(tmp_path: Path) -> None:
    path = tmp_path / "views.yaml"
    views = "{finer: {of: student, activations: 8, share: 0.5}, mean: {of: student, average: 0.9}}"
    path.write_text(
        f"method: {{name: kd}}\nstudent: {{build: resnet8, quantize: w2a2}}\nteachers: {views}\n"
        "data: {name: fake, size: 8, train: 8, test: 8}\ntrain: {epochs: 1}\n"
    )
    found = recipes.load(path)
    assembly = assemble(found, DataSpec((3, 8, 8), 10))
    shown = diagram_of(found, assembly, assembly.plan.phases[0].steps[0])
    assert [(lane.part, lane.about, lane.state) for lane in shown.lanes] == [
        ("finer", "student, a8", "view"),
        ("mean", "student, average", "view"),
        ("student", "resnet8 w2a2 (4 levels)", "learns"),
    ]
