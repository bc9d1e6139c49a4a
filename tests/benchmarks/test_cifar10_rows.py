"""CIFAR-10's table: every row and every setting of its search is a recipe that assembles, whatever its size."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from qkd.assembly.assemble import assemble
from qkd.networks.build import build
from qkd.quantizers import quantizers
from qkd.recipe.files import load
from qkd.tasks.spec import DataSpec

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cifar10

    yield cifar10
    for name in ("cifar10", "cifar10_rows", "cifar10_search", "seeds"):
        sys.modules.pop(name, None)


def _options(tmp_path: Path, **changes: object) -> Namespace:
    plain = {"root": tmp_path, "out": tmp_path, "starts": tmp_path, "threads": "1", "device": "cpu", "bits": "w2a2"}
    return Namespace(**(plain | {"search": False, "trials": False} | changes))


def _words(benchmark, name: str, size, options: Namespace, more: list[str]) -> list[str]:  # type: ignore[no-untyped-def]
    found: list[list[str]] = []
    benchmark.train = lambda words, folder, options: found.append(words)
    benchmark.start(name, 0, size, Path("unused"), options, more)
    return [word for word in found[0] if not word.startswith("data=")]


def _assembled(words: list[str]):  # type: ignore[no-untyped-def]
    recipe, *overrides = words
    return assemble(load(recipe, ["data={name: fake}", *overrides]), DataSpec((3, 32, 32), 10))


def _starts(benchmark, size, names: list[str], folder: Path) -> None:  # type: ignore[no-untyped-def]
    for start in benchmark.starts_of(names, size):
        network = build(start.partition("-")[0], classes=10, channels=3, options={})
        save_file(network.state_dict(), folder / f"{start}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
def test_every_row_assembles(benchmark, size: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    chosen = benchmark.SIZES[size]
    names = list(benchmark.rows(chosen))
    _starts(benchmark, chosen, names, tmp_path)
    for name in names:
        for bits in ("w2a2", "w4a4"):
            assembly = _assembled(_words(benchmark, name, chosen, _options(tmp_path, bits=bits), []))
            weights = {core.bits for where, core in quantizers(assembly.product()) if where.endswith(".weight")}
            assert int(bits[1]) in weights and assembly.plan.phases, name


@pytest.mark.slow
def test_every_setting_of_the_search_assembles(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    size = benchmark.SIZES["few"]
    _starts(benchmark, size, list(benchmark.rows(size)), tmp_path)
    tried = [setting for settings in benchmark.SEARCH.values() for setting in settings]
    tried += [(name, words) for name, settings in benchmark.TRIALS.items() for words in settings]
    for name, words in tried:
        assert _assembled(_words(benchmark, name, size, _options(tmp_path, search=True), words.split())).plan.phases


def test_every_method_is_searched_with_the_same_budget_and_tuned_by_its_search(benchmark) -> None:  # type: ignore[no-untyped-def]
    assert {len(set(settings)) for settings in benchmark.SEARCH.values()} == {8}
    rows = benchmark.rows(benchmark.SIZES["few"])
    assert all(name in rows for settings in benchmark.SEARCH.values() for name, _ in settings)
    searched = {setting for settings in benchmark.SEARCH.values() for setting in settings}
    assert not searched & {(name, words) for name, settings in benchmark.TRIALS.items() for words in settings}
    for name, words in sys.modules["cifar10_rows"].TUNED.items():
        assert words in [setting for _, setting in benchmark.SEARCH[name.partition(",")[0]]], name


def test_the_best_of_a_search_are_the_highest_means_of_three_seeds(  # type: ignore[no-untyped-def]
    benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [60.0, 70.0, 69.0, 50.0, 51.0, 52.0, 53.0, 68.0]
    words = [setting for _, setting in benchmark.SEARCH["qat"]]
    asked = []

    def tried(name: str, setting: str, seed: int, size: object, options: object) -> float:
        asked.append((setting, seed))
        return first[words.index(setting)] if seed == 100 else 60.0 if setting == words[1] else 68.0

    monkeypatch.setattr(benchmark, "tried", tried)
    benchmark.search("qat", benchmark.SIZES["few"], Namespace())
    assert asked == [(each, 100) for each in words] + [(words[at], seed) for at in (1, 2) for seed in (101, 102)]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "**" in line] == [f"| **qat** | `{words[2]}` | 69.00, 68.00, 68.00 | 68.33 |"]
    assert "63.33" in lines[1] and lines[0].endswith("| 60.00 |  |")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cifar10_full

    yield cifar10_full
    for name in ("cifar10_full", "cifar10_full_rows", "seeds"):
        sys.modules.pop(name, None)


def _of_full(**changes: object) -> Namespace:
    plain = {
        "root": Path("data"),
        "out": Path("out"),
        "only": None,
        "search": False,
        "device": "cpu",
        "precision": "bf16",
    }
    return Namespace(**(plain | changes))


@pytest.mark.slow
def test_every_row_at_full_size_assembles(full, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for build_name, seed in full.FLOAT_STARTS:
        place = tmp_path / "float" / f"{build_name}-s{seed}" / "product.safetensors"
        place.parent.mkdir(parents=True)
        save_file(build(build_name, classes=10, channels=3, options={}).state_dict(), place)
    for searching in (False, True):
        jobs = [job for job in full.jobs(_of_full(out=tmp_path, search=searching)) if job.folder.parent == tmp_path]
        assert len({job.folder for job in jobs}) == len(jobs) > 5
        for job in (job for job in jobs if "-s0" in job.folder.name or searching):
            recipe, *overrides = (word for word in job.words if not word.startswith("data="))
            assembly = assemble(load(recipe, ["data={name: fake}", *overrides]), DataSpec((3, 32, 32), 10))
            assert assembly.plan.phases, job.folder


def test_a_job_is_taken_by_one_worker_and_only_where_its_float_starts_are(full, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = _of_full(out=tmp_path, only=["qat"])
    taken: list[str] = []
    full.Job.run = lambda job, options: taken.append(job.folder.name)
    starts = [f"{name}-s{seed}" for name, seed in full.FLOAT_STARTS][:3]  # of the student's own network
    with full.claimed(full.float_job(*full.FLOAT_STARTS[0], options), options) as mine:
        assert mine
        full.work(options)
    assert taken == starts[1:]
    place = tmp_path / "float" / starts[0] / "product.safetensors"
    place.parent.mkdir(parents=True)
    place.touch()
    del taken[:]
    full.work(options)
    assert [name for name in taken if name not in starts] == ["qat-w2a2-s0", "qat-w4a4-s0"]
