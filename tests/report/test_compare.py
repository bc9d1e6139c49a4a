"""Comparison of runs: rows hold what the files hold, seeds are summarised, plots show the runs that no other beats."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from qkd.cli.compare import compare as command
from qkd.errors import RunError, UsageError
from qkd.report import compare as comparing
from qkd.report.compare import by_recipe, compare_runs, read_runs
from qkd.report.compare_page import Comparison, render, write
from qkd.report.headline import summary
from qkd.report.pareto import PANELS, figure, frontier, points_of
from qkd.report.run_data import read_run
from qkd.storage.predictions import Predictions
from qkd.storage.results import Spread
from qkd.storage.run import Run
from tests.support.refusals import Refused

RECIPE = """\
method: {{name: {method}}}
student: {{build: resnet8, quantize: {{weights: {bits}, activations: {bits}}}}}
seed: {seed}
"""


def run_of(
    folder: Path,
    *,
    method: str = "kd",
    bits: int = 2,
    seed: int = 0,
    top1: float = 95.0,
    shipped: bool = True,
    **more: Any,
) -> Path:
    """A run folder with just the files a comparison reads."""
    run = Run.create(folder)
    run.write_file("recipe.yaml", RECIPE.format(method=method, bits=bits, seed=seed))
    result = {
        "method": method,
        "top1": top1,
        "float_top1": 98.0,
        "before_top1": 50.0,
        "training_seconds": 30.0,
        "seed": seed,
    }
    run.write_json("result.json", {**result, **more})
    if shipped:
        name = str(run.folder / "student.onnx")
        run.write_json(
            "export.json", {"file": name, "bytes": 90_000, "float_bytes": 300_000, "top1_onnxruntime": top1 - 0.5}
        )
        rows = [
            {"file": name, "batch": 8, "threads": 1, "p50_ms": 1.0, "speedup": 3.0},
            {"file": name, "batch": 1, "threads": 1, "p50_ms": 0.25, "speedup": 2.0},
            {"file": str(run.folder / "float.onnx"), "batch": 1, "threads": 1, "p50_ms": 0.5, "speedup": 1.0},
        ]
        run.write_json("bench.json", {"processor": "p", "rows": rows})
    return run.folder


def test_a_row_holds_what_the_files_hold(tmp_path: Path) -> None:
    (row,) = compare_runs([run_of(tmp_path / "a", seed=3)])
    assert row.to_json() == {
        "run": str(tmp_path / "a"),
        "method": "kd",
        "network": "resnet8",
        "bits": "w2a2",
        "levels": 4,
        "float_top1": 98.0,
        "before_top1": 50.0,
        "top1": 95.0,
        "top1_onnxruntime": 94.5,
        "bytes": 90_000,
        "float_bytes": 300_000,
        "batch": 1,
        "threads": 1,
        "p50_ms": 0.25,
        "float_p50_ms": 0.5,
        "speedup": 2.0,
        "seconds": 30.0,
        "seed": 3,
    }


def test_a_run_that_is_not_trained_has_a_row_too(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "young")
    run.write_file("recipe.yaml", RECIPE.format(method="cmtkd", bits=4, seed=1))
    (row,) = compare_runs([run.folder])
    assert {row.top1, row.bytes, row.speedup, row.float_top1} == {None}
    assert (row.method, row.bits, row.seed) == ("cmtkd", "w4a4", 1)


@pytest.mark.parametrize("content", ["{half", "[1, 2]"])
def test_a_damaged_result_is_named_and_not_taken_for_none(tmp_path: Path, content: str) -> None:
    sound, damaged = run_of(tmp_path / "sound"), run_of(tmp_path / "damaged")
    (damaged / "result.json").write_text(content)
    done = call(sound, damaged)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert f"{damaged}/result.json: damaged" in line
    assert "result.json: damaged" in summary(read_run(Run(damaged)))


def test_rows_of_other_files_are_not_used(tmp_path: Path) -> None:
    run = Run(run_of(tmp_path / "a"))
    rows = run.read_json("bench.json")["rows"]
    other = {**rows[1], "file": str(run.folder / "ptq_u8s8.onnx"), "p50_ms": 0.1}
    run.write_json("bench.json", {"rows": [rows[1], other, rows[2]]})
    assert compare_runs([run.folder])[0].float_p50_ms == 0.5
    run.write_json("bench.json", {"rows": [{**other, "file": str(run.folder / "x.onnx")}]})
    (row,) = compare_runs([run.folder])
    assert row.bytes == 90_000 and row.p50_ms is row.float_p50_ms is row.speedup is None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(RunError, "run.not-a-run-folder"):
        compare_runs([tmp_path / "nowhere"])


def test_seeds_of_one_recipe_are_summarised(tmp_path: Path) -> None:
    scores = {0: 94.0, 1: 95.0, 2: 99.0}
    runs = [run_of(tmp_path / f"kd-s{seed}", seed=seed, top1=top1) for seed, top1 in scores.items()]
    runs.insert(1, run_of(tmp_path / "other", bits=4, seed=0, top1=97.0))
    together, alone = by_recipe(read_runs(runs))
    assert together.seeds == (0, 1, 2)
    assert together.top1 == Spread(96.0, pytest.approx(7**0.5), 3)  # type: ignore[arg-type]
    assert alone.runs == (str(tmp_path / "other"),)
    assert alone.top1 == Spread(97.0, None, 1)
    names = (
        "runs",
        "seeds",
        "method",
        "network",
        "bits",
        "levels",
        "batch",
        "threads",
        "float_top1",
        "before_top1",
        "top1",
    )
    assert tuple(alone.to_json()) == (*names, "top1_onnxruntime", "bytes", "p50_ms", "speedup", "seconds")


def test_runs_that_are_not_finished_do_not_pull_the_mean_down(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"s{seed}", seed=seed, top1=90.0, shipped=seed < 1) for seed in (0, 1)]
    (group,) = by_recipe(read_runs(runs))
    assert group.speedup == Spread(2.0, None, 1)
    assert group.top1 is not None and group.top1.count == 2


@pytest.mark.parametrize("seed", range(10))
def test_no_point_beats_the_frontier(seed: int) -> None:
    draw = random.Random(seed)
    points = [(float(draw.randint(1, 9)), float(draw.randint(1, 9))) for _ in range(12)]
    best = frontier(points)
    assert best == sorted(best)
    assert set(best) <= set(points)
    for cost, accuracy in points:
        assert any(other <= cost and better >= accuracy for other, better in best)
    for cost, accuracy in best:
        beaten = [p for p in points if p[0] <= cost and p[1] >= accuracy and p != (cost, accuracy)]
        assert not beaten


def test_points_are_the_deployed_accuracies_and_floats_stand_beside_them_once(tmp_path: Path) -> None:
    rows = compare_runs(
        [run_of(tmp_path / "a"), run_of(tmp_path / "b", seed=1, top1=96.0), run_of(tmp_path / "c", shipped=False)]
    )
    latency, size = (points_of(rows, panel) for panel in PANELS)
    assert [(point.name, point.cost, point.top1) for point in latency] == [
        ("a", 0.25, 94.5),
        ("b", 0.25, 95.5),
        ("float resnet8", 0.5, 98.0),
    ]
    assert [point.cost for point in size] == [90.0, 90.0, 300.0]


def test_page_loads_nothing_and_escapes(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    page = render(Comparison(compare_runs([run_of(tmp_path / "a", method=bad), run_of(tmp_path / "b")])))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|@import|<link", page)
    assert page.count('role="img"') == 2
    assert "a and 1 other are the most accurate with 94.5 %" in page
    best = run_of(tmp_path / "best", top1=96.0)
    assert "best is the most accurate with 95.5 %" in render(Comparison(compare_runs([best, run_of(tmp_path / "c")])))


def test_a_network_of_a_user_is_named_without_its_folders(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("resnet8", "/home/me/a/long/way/net.py:Net"))
    rows = compare_runs([run])
    assert rows[0].network == "/home/me/a/long/way/net.py:Net"
    assert " net.py:Net w2a2 " in call(run).stdout
    assert "/home/me" not in render(Comparison(rows))


def test_page_without_measurements_says_how_to_get_them(tmp_path: Path) -> None:
    page = render(Comparison(compare_runs([run_of(tmp_path / "a", shipped=False)])))
    assert 'role="img"' not in page
    assert "qkd bench" in page


def test_plots_follow_the_page_and_are_the_same_every_time(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    rows = compare_runs([run_of(tmp_path / name, top1=95.0 + i) for i, name in enumerate(("a", "b&c"))])
    rows.append(replace(rows[0], run=f"runs/{bad[1:8]}", method=bad, p50_ms=0.9))
    page = render(Comparison(rows))
    assert page == render(Comparison(rows))
    found = re.findall(r"<svg [^>]*class=\"chart\".*?</svg>", page, re.DOTALL)
    assert len(found) == 2
    for drawing in found:
        assert not re.search(r" id=|url\(|href|<style|<metadata|#[0-9a-f]{6}|font-family", drawing)
        assert {"var(--c0)", "var(--c1)", "var(--card)", "var(--muted)", "var(--ink)"} <= set(
            re.findall(r"var\(--\w+\)", drawing)
        )
        assert ">b&amp;c</text>" in drawing and ">float resnet8</text>" in drawing
        assert len(drawing) < 12_000


def test_names_of_points_cover_nothing(tmp_path: Path) -> None:
    rows = compare_runs([run_of(tmp_path / f"a_name_{i}", top1=95.0 + 0.02 * (i % 4)) for i in range(9)])
    made = figure(rows, PANELS)
    made.draw_without_rendering()
    for axes in made.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert 2 <= len(boxes) <= 10  # several runs at one place cannot all have a name
        assert not [1 for i, one in enumerate(boxes) for other in boxes[i + 1 :] if one.overlaps(other)]


@pytest.mark.parametrize("shipped", [True, False])
def test_picture_is_written_at_once(tmp_path: Path, shipped: bool) -> None:
    target = tmp_path / "front.png"
    write(target, Comparison(compare_runs([run_of(tmp_path / "a", shipped=shipped)])))
    assert target.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in arguments], catch_exceptions=False)


def test_other_endings_are_refused_before_anything_is_read(tmp_path: Path, refused: Refused) -> None:
    with refused(UsageError, "compare.unknown-ending"):
        call(tmp_path / "nowhere", "-o", tmp_path / "a.pdf")


def test_json_is_one_object_and_lines_of_the_table_are_whole(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"a_rather_long_name_of_a_run_s{seed}", seed=seed) for seed in (0, 1)]
    printed = json.loads(call(*runs, "--seeds", "--json").stdout)
    assert set(printed) == {"rows", "pairs", "groups", "group_pairs"}
    assert printed["rows"] == [row.to_json() for row in compare_runs(runs)]
    assert printed["groups"] == [group.to_json() for group in by_recipe(read_runs(runs))]
    table = call(*runs).stdout
    assert re.search(
        r"a_rather_long_name_of_a_run_s1 +kd +resnet8 w2a2 \(4 levels\) +98\.0 +50\.0 +95\.0 +94\.5 +90\.0 +0\.250 +2\.00 +30 +1",
        table,
    )
    seeds = call(*runs, "--seeds").stdout
    assert re.search(r"a_rather_long_name_of_a_run \(2 runs\) .* 95\.0 ± 0\.0 .* 0, 1", seeds)


def test_every_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(comparing, "read_run", lambda run: read.append(run.folder) or read_run(run))
    runs = [run_of(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]
    call(*runs, "--seeds", "-o", tmp_path / "all.html")
    assert read == runs


def test_page_holds_groups_too(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"s{seed}", seed=seed, top1=94.0 + seed) for seed in (0, 1)]
    call(*runs, "--seeds", "-o", tmp_path / "all.html")
    assert "94.5 ± 0.7" in (tmp_path / "all.html").read_text()


def run_with(folder: Path, wrong: tuple[int, ...], seed: int = 0, test_set: str = "t", **more: Any) -> Path:
    """A run that gives ten images of one class, all but those of ``wrong``, the right one."""
    run = run_of(folder, seed=seed, **more)
    predicted = np.array([int(i in wrong) for i in range(10)])
    Predictions(predicted, np.zeros(10), test_set).save(Run(run))
    return run


def test_runs_are_compared_image_by_image_with_the_first(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / "a", wrong=(0, 1, 2)),
        run_with(tmp_path / "b", wrong=(2,), bits=4),
        run_with(tmp_path / "c", ()),
    ]
    one, other = json.loads(call(*runs, "--json").stdout)["pairs"]
    assert one == {
        "runs": [str(runs[1])],
        "beside": [str(runs[0])],
        "seeds": None,
        "images": 10,
        "difference": 20.0,
        "std": None,
        "only_runs": 2,
        "only_beside": 0,
        "p": 0.5,  # 2 / 2^2
        "why_not": None,
    }
    assert (other["only_runs"], other["only_beside"], other["p"]) == (3, 0, pytest.approx(0.25))
    assert re.search(r"^ b +\+20\.00 +2 +0 +0\.5 *$", call(*runs).stdout, re.MULTILINE)


def test_seeds_are_paired_and_an_image_counts_once(tmp_path: Path) -> None:
    first = [run_with(tmp_path / f"a{seed}", wrong, seed) for seed, wrong in ((0, (0, 1)), (1, (0, 2)), (2, ()))]
    second = [run_with(tmp_path / f"b{seed}", wrong, seed, bits=4) for seed, wrong in ((1, (3,)), (0, (1,)), (5, ()))]
    printed = json.loads(call(*first, *second, "--seeds", "--json").stdout)
    (pair,) = printed["group_pairs"]
    assert pair["seeds"] == [1, 0] and len(printed["pairs"]) == 5
    assert (pair["difference"], pair["std"]) == (10.0, 0.0)  # from 80 to 90 in both
    # right so often in the two seeds: images 0 and 2 more often in the second, image 3 in the first, image 1 equally often
    assert (pair["only_runs"], pair["only_beside"], pair["p"]) == (2, 1, 1.0)
    assert re.search(r"\+10\.00 ± 0\.00 +2 +1 +1 +1, 0", call(*first, *second, "--seeds").stdout)


def test_runs_that_cannot_be_paired_say_why(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / "a", ()), run_of(tmp_path / "old"), run_with(tmp_path / "far", (), test_set="u")]
    done = call(*runs, "--json")
    old, far = json.loads(done.stdout)["pairs"]
    assert "predictions.npz: missing" in old["why_not"] and "other images" in far["why_not"]
    assert old["p"] is far["p"] is old["difference"] is None
    shown = call(*runs).stdout
    assert "old: not compared image by image: " in shown and "p: McNemar" not in shown
    others = run_with(tmp_path / "s", (), seed=9, bits=4)
    (pair,) = json.loads(call(runs[0], others, "--seeds", "--json").stdout)["group_pairs"]
    assert pair["why_not"] == "no seed is in both groups"
    assert json.loads(call(runs[0], "--json").stdout)["pairs"] == []


COMBINED = {"part": "shared", "top1": 95.0, "members": ["four", "six"], "best_member": "six", "best_top1": 94.5}


def test_page_and_table_hold_pairs_and_combined_teachers(tmp_path: Path) -> None:
    beside = {"difference": 0.5, "standard_error": 0.6, "disagreement": 1.2}
    runs = [
        run_with(tmp_path / "a", (1, 2)),
        run_with(tmp_path / "b", (), seed=1, combined={**COMBINED, **beside}),
        run_with(tmp_path / "c", (), seed=2, combined={**COMBINED, **beside, "standard_error": 0.4}),
        run_of(tmp_path / "old", seed=3),
    ]
    shown = call(*runs, "--seeds", "-o", tmp_path / "all.html").stdout
    assert re.search(r"^ b +95\.00 +six 94\.50 +\+0\.50 ± 0\.60 +no +1\.2 *$", shown, re.MULTILINE)
    assert re.search(r"^ c +95\.00 +six 94\.50 +\+0\.50 ± 0\.40 +yes +1\.2 *$", shown, re.MULTILINE)
    content = (tmp_path / "all.html").read_text()
    for text in ("McNemar&#39;s exact test", "+20.00", "Combined teachers", "+0.50 ± 0.60"):
        assert text in content
    assert "old: not compared image by image" in content
