"""Runs that are killed, interrupted, damaged or out of space: nothing is lost, and the end is the same to the last bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric.plugins import MixedPrecision

from qkd.cli.progress import Reporter
from qkd.engine.device import Machine
from qkd.engine.events import EpochEnded, Event, Resumed, StepTaken
from qkd.engine.signals import Interrupted
from qkd.engine.state import restore
from qkd.errors import RunError
from qkd.methods import METHODS
from qkd.pipeline.resume import latest_run, refuse_changed, resumable_run
from qkd.pipeline.train import train_recipe
from qkd.storage import atomic
from qkd.storage.artifacts import ORIGINAL_RECIPE
from qkd.storage.checkpoints import BEST, KEPT, LAST, CheckpointName, Checkpoints, is_intact
from qkd.storage.run import Run
from tests.support.command_line import qkd
from tests.support.refusals import Refused
from tests.support.tiny_runs import COPIES, TINY, losses, recipe_in

ALONE: dict[str, Any] = {"method": {"name": "qat"}, "teachers": {}, "match": []}
ONE = Machine("cpu", threads=1)
ROOT = Path(__file__).parent.parent.parent


def killed(folder: Path, changes: dict[str, Any], *instants: str) -> tuple[Run, list[Run], int]:
    """Train once unharmed, and again killed at the instants. -> the run unharmed, the killed ones, how many kills hit"""
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
    words = [sys.executable, "-m", "tests.support.killing", str(folder / "tiny.yaml"), str(folder), *instants]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    attempts = [line.split() for line in done.stdout.splitlines()]
    assert {status for _, _, status in attempts} <= {"0", "-9"}, done.stdout + done.stderr
    assert attempts[-1][1:] == ["end", "0"], done.stdout + done.stderr
    names = dict.fromkeys(name for name, *_ in attempts if name != "whole")
    return Run(folder / "whole"), [Run(folder / name) for name in names], sum(status == "-9" for *_, status in attempts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny recipe, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run.create(folder / "whole")
    train_recipe(recipe_in(folder), run, ONE)
    return run


def same(one: Run, other: Run) -> bool:
    a, b = one.load_product(), other.load_product()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_in_every_phase_and_inside_writes_the_product_is_the_same(tmp_path: Path) -> None:
    changes = {"teachers": {"four": TINY["teachers"]["four"]}, "train": {"epochs": 2, "rate": 0.05}}
    # in pretraining, before and behind a rename, inside an epoch, and wherever it is after some time
    whole, (broken,), hits = killed(tmp_path, changes, "w9", "w15", "w24", "t0.6")
    assert hits >= 3
    assert same(whole, broken)
    assert losses(whole) == losses(broken)
    assert not list(broken.folder.rglob(f"*{atomic.UNFINISHED}"))


def begun_before_seeds(folder: Path, steps: int | None) -> Run:
    """A run of the tiny recipe as a version without `seed:` of networks left it: all began equal, its recipe has no such key.

    ``steps``: None for a run that was killed before it had a checkpoint.
    """
    run = Run.create(folder / "old")
    train_recipe(recipe_in(folder, teachers=COPIES), run, ONE, max_steps=steps or 1)
    if steps is None:
        shutil.rmtree(run.checkpoints.folder)
        run.checkpoints.folder.mkdir()
    (run.folder / "result.json").unlink()
    stored = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    for entry in (stored["student"], *stored["teachers"].values()):
        assert entry.pop("seed", "same") in (None, "same")
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    return run


@pytest.mark.parametrize("steps", [6, None])  # inside the second epoch; before the first checkpoint
def test_a_run_from_before_networks_had_seeds_goes_on_as_it_began(tmp_path: Path, steps: int | None) -> None:
    whole = Run.create(tmp_path / "whole")
    train_recipe(recipe_in(tmp_path, teachers=COPIES), whole, ONE)
    old = begun_before_seeds(tmp_path, steps)
    recipe = recipe_in(tmp_path)  # it says nothing of seeds, as the one of the run did
    refuse_changed(old, recipe)
    train_recipe(recipe, old, ONE, resume=True, max_steps=8 if steps else None)
    train_recipe(recipe, old, ONE, resume=True)
    assert same(whole, old)
    assert losses(whole) == losses(old)
    refuse_changed(old, recipe_in(tmp_path, teachers=COPIES))


def test_resuming_with_another_seed_of_a_network_is_refused(tmp_path: Path, refused: Refused) -> None:
    old = begun_before_seeds(tmp_path, 1)
    other = recipe_in(tmp_path, teachers={**TINY["teachers"], "four": {**TINY["teachers"]["four"], "seed": 7}})
    with refused(RunError, "run.recipe-changed"):
        refuse_changed(old, other)
    run = Run.create(tmp_path / "new")
    train_recipe(recipe_in(tmp_path), run, ONE, max_steps=1)
    refuse_changed(run, recipe_in(tmp_path))
    with refused(RunError, "run.recipe-changed"):
        refuse_changed(run, recipe_in(tmp_path, teachers=COPIES))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in ("cmtkd", "dgkd") if name in METHODS])
def test_twenty_kills_at_random_instants(tmp_path: Path, method: str) -> None:
    whole, broken, hits = killed(tmp_path, {"method": {"name": method}}, "random", "20")
    assert hits == 20
    for run in broken:
        assert same(whole, run)
        assert losses(whole) == losses(run)


def test_an_interrupted_run_keeps_its_step_and_goes_on_from_it(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, **ALONE, train={"epochs": 3, "rate": 0.05, "ema": 0.9, "accumulate": 2})
    whole = Run.create(tmp_path / "whole")
    train_recipe(recipe, whole, ONE)

    def interrupt(event: Event) -> None:
        if isinstance(event, StepTaken) and (event.phase, event.epoch) == ("train", 1):
            os.kill(os.getpid(), signal.SIGINT)

    broken = Run.create(tmp_path / "broken")
    with pytest.raises(Interrupted, match="step 5 is kept"):
        train_recipe(recipe, broken, ONE, listen=interrupt)
    assert broken.checkpoints.files(LAST)[0].name.startswith("last-000000005-part-")
    kept = broken.checkpoints.load(LAST)
    assert kept is not None
    assert kept["cursor"]["seconds"] > broken.metrics()[-1]["seconds"] > 0  # the step behind the epoch counts
    assert not broken.finished
    train_recipe(recipe, broken, ONE, resume=True)
    assert same(whole, broken)
    assert losses(whole) == losses(broken)
    assert broken.finished


@pytest.mark.parametrize("steps", [6, 10])
def test_stopped_by_max_steps_it_can_go_on_to_the_same_end(tmp_path: Path, whole: Run, steps: int) -> None:
    recipe, short = recipe_in(tmp_path), Run.create(tmp_path / "short")
    assert train_recipe(recipe, short, ONE, max_steps=steps).finished is False
    assert not short.finished
    train_recipe(recipe, short, ONE, resume=True)
    assert same(whole, short)
    assert losses(whole) == losses(short)


def test_going_on_in_another_way_is_said(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path, **ALONE), Run.create(tmp_path / "run")
    heard: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Resumed):
            heard.append(str(event))

    train_recipe(recipe, run, ONE, max_steps=1)
    train_recipe(recipe, run, ONE, max_steps=2, resume=True, listen=hear)
    train_recipe(recipe, run, Machine("cpu", "bf16", threads=1), max_steps=3, resume=True, listen=hear)
    assert heard[0] == "resumed after step 1"
    assert heard[1].startswith("resumed after step 2\nwarning: the result will differ")
    assert heard[1].endswith(": precision was fp32, is bf16")


def test_a_run_of_another_precision_has_no_loss_scale_to_take_over() -> None:
    scaled = MixedPrecision("16-mixed", "cpu")
    fabric: Any = SimpleNamespace(strategy=SimpleNamespace(precision=scaled), world_size=1, global_rank=0)
    fabric.device = torch.device("cpu")
    begun = {"optimizers": [], "average": None, "precision": {}, "running": None}
    random = {"random": [torch.get_rng_state()], "random_cuda": [torch.empty(0)]}
    assert restore(fabric, {**begun, **random}, [], None) is None
    assert scaled.scaler is not None and scaled.scaler.get_scale() == 2.0**16


def test_an_epoch_that_leaves_out_a_lone_image_is_not_cut_short(tmp_path: Path) -> None:
    lone = {**TINY["data"], "train": 65}  # four batches of 16, and one image
    recipe = recipe_in(tmp_path, **ALONE, data=lone, train={"epochs": 2, "rate": 0.05})
    run = Run.create(tmp_path / "run")
    done: dict[str, float] = {}

    def hear(event: Event) -> None:
        if isinstance(event, StepTaken):
            done[event.phase] = event.progress

    train_recipe(recipe, run, ONE, max_steps=4, listen=hear)
    [newest, *_] = run.checkpoints.files(LAST)
    assert newest.name.startswith("last-000000004-whole-")
    assert done["train"] == 3 / 4 / 2  # the last batch of the first of two epochs
    assert train_recipe(recipe, run, ONE, resume=True, max_steps=8).finished is True


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, whole: Run, caplog: pytest.LogCaptureFixture) -> None:
    recipe, broken = recipe_in(tmp_path), Run(tmp_path / "broken")
    shutil.copytree(whole.folder, broken.folder)
    newest = broken.checkpoints.files(LAST)[0]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    (broken.folder / "result.json").unlink()
    train_recipe(recipe, broken, ONE, resume=True)
    assert f"{newest} is damaged" in caplog.text
    assert same(whole, broken)
    assert losses(whole) == losses(broken)
    for path in broken.checkpoints.files(LAST):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="every checkpoint is damaged") as error:  # their names depend on the processor
        broken.checkpoints.load(LAST)
    assert error.value.key == "checkpoint.all-damaged"


def test_a_checkpoint_of_another_version_is_refused_and_kept(tmp_path: Path, refused: Refused) -> None:
    recipe, run = recipe_in(tmp_path, **ALONE), Run.create(tmp_path / "run")
    train_recipe(recipe, run, ONE, max_steps=2)
    kept = run.checkpoints.load(LAST)
    assert kept is not None
    kept["parts"]["surveys.0.weights"] = kept["parts"].pop("networks.student.network.fc.bias")
    run.checkpoints.save(LAST, kept, steps=kept["cursor"]["steps"] + 1, whole=False)
    before = {path.name: path.read_bytes() for path in run.checkpoints.files(LAST)}
    with refused(RunError, "run.checkpoint-does-not-fit"):
        train_recipe(recipe, run, ONE, resume=True)
    assert {path.name: path.read_bytes() for path in run.checkpoints.files(LAST)} == before


@pytest.mark.parametrize("content", ["{half", "[1, 2]"])
def test_a_damaged_result_is_named_and_made_again(
    tmp_path: Path, whole: Run, caplog: pytest.LogCaptureFixture, content: str, refused: Refused
) -> None:
    recipe, broken = recipe_in(tmp_path), Run(tmp_path / "broken")
    shutil.copytree(whole.folder, broken.folder)
    (broken.folder / "result.json").write_text(content)
    train_recipe(recipe, broken, ONE, resume=True)
    assert f"{broken.folder / 'result.json'}: damaged" in caplog.text
    assert broken.result()["top1"] == whole.result()["top1"]
    assert same(whole, broken)
    (broken.folder / "result.json").write_text(content)
    shutil.rmtree(broken.checkpoints.folder)
    with refused(RunError, "run.no-checkpoint"):
        train_recipe(recipe, broken, ONE, resume=True)
    assert same(whole, broken)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    path = kept.save(LAST, {"tensor": torch.arange(1000)}, steps=3)
    assert is_intact(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_intact(path)


def test_generations_are_kept_in_the_order_of_training(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.load(BEST) is None
    for steps, whole in ((0, True), (4, False), (8, False), (8, True)):
        kept.save(LAST, {"at": (steps, whole)}, steps=steps, whole=whole)
    kept.prune()
    assert [CheckpointName.parse(path.name)[:2] for path in kept.files(LAST)] == [(8, "whole"), (8, "part")]
    assert len(kept.files(LAST)) == KEPT
    assert kept.load(LAST) == {"at": (8, True)}
    kept.remove_after(8, whole=False)
    assert kept.load(LAST) == {"at": (8, False)}


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_state(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    recipe, broken = recipe_in(tmp_path), Run.create(tmp_path / "broken")
    real = atomic.HashingFile.write

    def full(self: atomic.HashingFile, data: Any) -> int:
        if "last" in str(self.file.name) and len(broken.checkpoints.files(LAST)) == KEPT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(atomic.HashingFile, "write", full)
    with refused(RunError, "file.cannot-write") as error:
        train_recipe(recipe, broken, ONE)
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.undo()
    assert all(is_intact(path) for path in broken.checkpoints.files(LAST))
    assert not list(broken.folder.rglob(f"*{atomic.UNFINISHED}"))
    train_recipe(recipe, broken, ONE, resume=True)
    assert same(whole, broken)


def test_a_folder_that_cannot_be_written_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_permission(self: Path, *arguments: Any, **keywords: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = Run.create(tmp_path / "run")
    monkeypatch.setattr(Path, "open", no_permission)
    for file, write in (
        ("recipe.yaml", lambda: run.write_file("recipe.yaml", "x")),
        ("metrics.jsonl", lambda: run.append_metrics({"a": 1})),
    ):
        with pytest.raises(RunError) as error:
            write()
        assert error.value.key == "file.cannot-write"
        assert f"{file}: cannot write: Permission denied" in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError) as error:
            Run.create(tmp_path / "run")
        assert error.value.key == "run.cannot-make-folder"
    finally:
        tmp_path.chmod(0o700)


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    with atomic.lock_folder(tmp_path), pytest.raises(RunError, match="another process"), atomic.lock_folder(tmp_path):
        pass
    with atomic.lock_folder(tmp_path):
        pass


def test_a_run_without_a_recipe_yet_is_begun_again(tmp_path: Path, refused: Refused) -> None:
    run = Run.create(tmp_path / "runs" / "tiny")
    assert resumable_run(run.folder).folder == run.folder
    run.write_file(ORIGINAL_RECIPE, "what the user wrote")
    assert resumable_run(run.folder).folder == run.folder
    assert latest_run(tmp_path / "runs", "tiny").folder == run.folder
    (run.folder / "thesis.txt").write_text("not a run")
    with refused(RunError, "run.not-a-run-folder"):
        resumable_run(run.folder)
    with refused(RunError, "run.nothing-to-resume"):
        latest_run(tmp_path, "else")


def test_half_a_line_of_metrics_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_metrics({"steps": 4})
    run.append_metrics({"steps": 8})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 12, "pha')
    assert [line["steps"] for line in run.metrics()] == [4, 8]
    run.remove_metrics_after(8, whole=False)
    assert run.metrics() == [{"steps": 4}]


def test_ctrl_c_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Reporter, event: Event) -> None:
        if isinstance(event, EpochEnded) and event.metrics["phase"] == "train":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Reporter, "__call__", interrupt)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **ALONE}))
    done = qkd("train", "tiny.yaml", "--threads", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "run: step 4 is kept; go on with --out run --resume" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.undo()
    assert qkd("train", "tiny.yaml", "--threads", "1", "--out", "run", "--resume", cwd=tmp_path).returncode == 0
    again = qkd("train", "tiny.yaml", "--threads", "1", "--out", "run", "--resume", "--json", cwd=tmp_path)
    assert again.returncode == 0
    assert "run: is finished" in again.stderr
    assert json.loads(again.stdout)["steps"] == 12
