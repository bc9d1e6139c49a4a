"""Every flag of the command line does what it says: a table of commands, and the proof that none is left out of it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from qkd.cli.main import commands
from qkd.engine import loggers
from qkd.pipeline import sweep
from qkd.storage.run import Run
from tests.support.command_line import Done, qkd
from tests.support.optuna_stand_in import StandIn
from tests.support.tiny_runs import TINY

SMALL: dict[str, Any] = {
    **TINY,
    "method": {"name": "qat"},
    "teachers": {},
    "match": [],
    "train": {"epochs": 1},
    "student": {**TINY["student"], "start_from": "scratch"},
}
Seen = Callable[[Done, Path], bool]


@dataclass(frozen=True)
class Case:
    """A command, and what has to be seen once it has run in a folder with ``tiny.yaml`` and the finished ``runs/tiny``."""

    words: str
    seen: Seen
    code: int = 0

    @property
    def flags(self) -> set[tuple[str, str]]:
        first, *rest = self.words.split()
        return {(first, word.partition("=")[0]) for word in rest if re.match("--?[a-z]", word)}


def printed(done: Done) -> dict[str, Any]:
    [line] = done.stdout.splitlines()
    return dict(json.loads(line))


def says(text: str) -> Seen:
    return lambda done, folder: text in done.stdout + done.stderr


def within(done: Done, folder: Path) -> bool:
    """Checkpoints inside the epoch, not only behind it; nothing is printed on the way."""
    kept = [path.name for path in Run(folder / "a").checkpoints.files("last")]
    return any("-part-" in name for name in kept) and done.stderr == "" and done.stdout.startswith("a: qat")


def lower(done: Done, folder: Path) -> bool:
    """In bf16 the losses are others."""
    found, usual = (Run(folder / name).metrics()[-1]["train/loss/label/student"] for name in ("a", "runs/tiny"))
    return bool(found != usual and abs(found - usual) < 0.2 * usual)


def stopped(done: Done, folder: Path) -> bool:
    return printed(done)["steps"] == 2 and not printed(done)["finished"]


def curves(done: Done, folder: Path) -> bool:
    return (folder / "a" / "csv" / "metrics.csv").is_file() and (folder / "a" / "drawn").is_file()


def nothing_kept(done: Done, folder: Path) -> bool:
    return [path.name for path in (folder / "runs").iterdir()] == ["tiny"] and "export" in printed(done)


def raw(done: Done, folder: Path) -> bool:
    report = printed(done)
    return (report["storage"], report["input"], report["layout"]) == ("packed", "uint8", "nhwc") and (
        folder / "x.onnx"
    ).is_file()


def rows(count: int) -> Seen:
    return lambda done, folder: len(printed(done)["rows"]) == count


def benched(done: Done, folder: Path) -> bool:
    found = printed(done)["rows"]
    files = {Path(row["file"]).name for row in found}
    return (
        len(files) >= 3
        and {(row["batch"], row["threads"]) for row in found} == {(1, 1), (2, 1)}
        and all(row["peak_mb"] for row in found)
    )


TRAIN = "train tiny.yaml --out a --threads 1"
BENCH = "bench runs/tiny --seconds 0.02 --batch 1"
CASES = [
    Case(f"{TRAIN} --save-every 0 --quiet", within),
    Case(f"{TRAIN} --precision bf16 --device cpu", lower),
    Case(f"{TRAIN} -q --compile off --workers 0 --json", lambda done, folder: printed(done)["finished"]),
    Case(f"{TRAIN} --max-steps 2 --json", stopped),
    Case("train tiny.yaml --resume --threads 1", says("nothing to resume")),
    Case("train tiny.yaml --dry-run --threads 1 --json", nothing_kept),
    Case("train tiny.yaml --dry-run --threads 1", says("trained 2 batches, exported, verified on 32 test images")),
    Case("train tiny.yaml --dry-run --out a", says("no use for --out and --resume"), 2),
    Case("train tiny.yaml --max-steps 1 --threads 1 --out runs/tiny", says("something in it already; this run is")),
    Case("layers resnet8 --size 0", says("0 is not in the range x>=1"), 2),
    Case("init digits_kd_w2a2 -o gone/x.yaml", says("gone/x.yaml: no such file or directory"), 1),
    Case(f"{TRAIN} --logger csv --tensorboard", curves),
    Case("sweep tiny.yaml --over train.rate=0.1 --seeds 1 --jobs 2 --threads 1 --out a --json", rows(1)),
    Case("sweep tiny.yaml --search train.rate=0.1:0.2 --trials 1 --device cpu --out a --json", rows(1)),
    Case("sweep tiny.yaml --seeds 1 --max-steps 1 --threads 1 --out a --json", rows(1)),
    Case("sweep tiny.yaml --seeds 1 --max-steps 1 --threads 1 --out a", says("1 of these 1 stopped before their end")),
    Case("sweep tiny.yaml --seeds 1 --launcher local --launch-with gpus=1", says("only submitit and ray"), 2),
    Case("export runs/tiny -o x.onnx --storage packed --input uint8 --layout nhwc --json", raw),
    Case("export runs/tiny --output y.onnx --require-integer", lambda done, folder: (folder / "y.onnx").is_file()),
    Case("export runs/tiny --target onnxruntime --output y.onnx", says("equal to the integer emulator")),
    Case("export runs/tiny --target abacus", says("'abacus' is not one of"), 2),
    Case("bench runs/tiny --against ptq --seconds 0.02 --batch 1,2 --threads 1 --memory --json", benched),
    Case(f"{BENCH} --openvino", says("openvino"), 2),
    Case(f"{BENCH} --min-top1 0 --max-p50-ms 10000 --min-speedup 0 --max-drop 100", says("student.onnx")),
    Case(f"{BENCH} --min-top1 101", says("top-1"), 3),
    Case(f"{BENCH} --max-p50-ms 0.00001", says("ms"), 3),
    Case(f"{BENCH} --min-speedup 1000", says("1000"), 3),
    Case(f"{BENCH} --max-drop -101", says("top-1"), 3),
    Case(
        "eval runs/tiny --integer --threads 1 --device cpu --json", lambda done, folder: printed(done)["images"] == 32
    ),
    Case("eval x.onnx --data tiny.yaml --json", lambda done, folder: printed(done)["images"] == 32),
    Case("compare runs/tiny runs/tiny --seeds -o c.html", lambda done, folder: (folder / "c.html").is_file()),
    Case("compare runs/tiny --output c.png --json", lambda done, folder: (folder / "c.png").is_file()),
    Case("check tiny.yaml --print", lambda done, folder: yaml.safe_load(done.stdout)["train"]["epochs"] == 1),
    Case("check tiny.yaml --json", lambda done, folder: printed(done)["problems"] == []),
    Case("layers resnet8 --size 16 --channels 1 --classes 7", lambda done, folder: "16x16x16" in done.stdout),
    Case("ls methods --json", lambda done, folder: "cmtkd" in str(printed(done))),
    Case(
        "allocate tiny.yaml --mac-bits 4 --measure logits --out b.yaml --threads 1",
        lambda done, folder: (folder / "b.yaml").is_file(),
    ),
    Case("allocate tiny.yaml --bits 4 --device cpu --json", lambda done, folder: printed(done)["mean_bits"] <= 4),
    Case("allocate tiny.yaml --kb 40 --measure logits --json", lambda done, folder: bool(printed(done)["quantize"])),
    Case("init -o mine.yaml", lambda done, folder: (folder / "mine.yaml").is_file()),
    Case("init --output mine.yaml", lambda done, folder: (folder / "mine.yaml").is_file()),
    Case("--version", says("qkd, version")),
    Case("-v check none.yaml", says("Traceback"), 2),
    Case("--verbose check none.yaml", says("Traceback"), 2),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its finished and exported run, and its file on its own."""
    folder = tmp_path_factory.mktemp("flags")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SMALL))
    for words in ("train tiny.yaml --threads 1", "export runs/tiny"):
        done = qkd(*words.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    shutil.copy(folder / "runs/tiny/student.onnx", folder / "x.onnx")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with stand-ins for tools that may not be installed."""
    monkeypatch.setitem(sys.modules, "optuna", StandIn())
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(sweep, "run_in_process", at_once)
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", drawn)
    return shutil.copytree(finished, tmp_path / "there")


def at_once(words: Sequence[str], folder: str) -> str | None:
    """A run of a sweep without a process of its own."""
    done = qkd(*words, cwd=Path(folder))
    return done.stderr if done.returncode else None


@contextlib.contextmanager
def drawn(folder: Path, facts: Any) -> Iterator[loggers.Write]:
    yield lambda curves, step: (folder / "drawn").write_text(str(step)) and None


@pytest.mark.parametrize("case", CASES, ids=[case.words for case in CASES])
def test_a_flag_does_what_it_says(folder: Path, case: Case) -> None:
    done = qkd(*case.words.split(), cwd=folder)
    assert done.returncode == case.code, done.stderr
    assert case.seen(done, folder), done.stdout + done.stderr


def options() -> set[tuple[str, str]]:
    """(command, flag) of all there are, long and short."""
    found = {(flag, flag) for parameter in commands.params for flag in parameter.opts}
    for name, command in commands.commands.items():
        flags = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        found |= {(name, flag) for parameter in flags for flag in (*parameter.opts, *parameter.secondary_opts)}
    return found


def test_no_flag_is_left_out() -> None:
    used = {flag for case in CASES for flag in case.flags}
    used |= {(first, first) for case in CASES if (first := case.words.split()[0]).startswith("-")}
    assert sorted(options() - used) == []  # a new one needs a case in the table
    assert sorted(used - options()) == []


def test_every_flag_has_its_help() -> None:
    silent = ("size", "channels", "classes", "precision")  # whose names and choices say all
    for name, command in commands.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help or parameter.name in silent, f"{name} {parameter.opts}"
