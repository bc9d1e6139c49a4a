"""CIFAR-10 at full size, for two CPU cores and some nights: every row, seed by seed, as a queue that several workers share.

    python benchmarks/cifar10.py --size full --root data/cifar10 --out runs/cifar10-full            # work; start one per core
    python benchmarks/cifar10.py --size full --out runs/cifar10-full --table                         # what there is so far
    python benchmarks/cifar10.py --size full --root data/cifar10 --out runs/cifar10-full --search    # settings, on validation

A job is a training, its export and its predictions on the test split; each has a folder under --out and is done once. A
worker takes the next job that is not locked by another (a lock ends with its process), and resumes one that was interrupted.
Rows come in the order of cifar10_full_rows.ROWS, all seeds of a row before the next. Everything runs in bfloat16
(--precision), which training takes 0.6 of the time for; exported files are proven as always.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cifar10_full_rows import FLOAT_EPOCHS, FLOAT_STARTS, ROWS, SCHEMES, SEARCH, SEARCH_EPOCHS, SEEDS, STUDENT, TRAIN
from seeds import Failed, cell, exported, trained

from qkd.tasks.paired import paired

PREDICTIONS = "right.npy"  # which test images the exported file has right


@dataclass(frozen=True)
class Job:
    """One folder: a training and, for rows of the table, its export."""

    folder: Path
    words: tuple[str, ...]
    export: bool = True

    def run(self, options: argparse.Namespace) -> None:
        machine = ("--threads", "1", "--device", options.device, "--precision", options.precision)
        trained([*self.words, *machine, "--save-every", "5"], self.folder)
        if self.export:
            exported(self.folder, "--storage", "packed")
            _predict(self.folder)

    @property
    def done(self) -> bool:
        return (self.folder / (PREDICTIONS if self.export else "result.json")).is_file()


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every job in its order: the float starts that are asked for, then the settings of the search or the rows."""
    chosen = list(_searches(options) if options.search else _rows(options))
    words = " ".join(word for job in chosen for word in job.words)
    for build, seed in FLOAT_STARTS:
        if f"/{build}-s{seed}/" in words:
            yield float_job(build, seed, options)
    yield from chosen


def _searches(options: argparse.Namespace) -> Iterator[Job]:
    for name, settings in SEARCH.items():
        for setting in settings if not options.only or name in options.only else ():
            yield row_job(name, "w2a2", SEEDS[0], options, setting)


def _rows(options: argparse.Namespace) -> Iterator[Job]:
    for name, row in ROWS.items():
        for bits in row.schemes if not options.only or name in options.only else ():
            for seed in SEEDS:
                yield row_job(name, bits, seed, options)


def float_job(build: str, seed: int, options: argparse.Namespace) -> Job:
    words = ["cifar10_qat_w2a2", _data(options), f"student={{build: {build}, quantize: off, start_from: scratch}}"]
    words += [f"train={{epochs: {FLOAT_EPOCHS}, rate: 0.1, weight_decay: 0.0005}}", f"seed={seed}"]
    return Job(options.out / "float" / f"{build}-s{seed}", tuple(words), export=False)


def row_job(name: str, bits: str, seed: int, options: argparse.Namespace, setting: str | None = None) -> Job:
    """A row of the table, or one ``setting`` of it tried for a few epochs on the validation split."""
    row = ROWS[name]
    train = dict(TRAIN) if setting is None else {**TRAIN, "epochs": str(SEARCH_EPOCHS)}
    words = [row.recipe, _data(options), "train={" + ", ".join(f"{k}: {v}" for k, v in train.items()) + "}"]
    start = f"<starts>/{STUDENT}-s<seed>.safetensors"
    words += [f"student={{build: {STUDENT}, quantize: {bits}, start_from: {start}}}", *row.words]
    words += (row.tuned if setting is None else setting).split()
    words = [_filled(word, bits, seed, options) for word in words]
    kind = f"{bits}-s{seed}" if setting is None else f"search-{re.sub(r'[^a-zA-Z0-9.=]+', '-', setting) or 'plain'}"
    return Job(options.out / f"{_file(name)}-{kind}", (*words, f"seed={seed}"), export=setting is None)


def _filled(word: str, bits: str, seed: int, options: argparse.Namespace) -> str:
    for more in (1, 2):
        word = word.replace(f"<seed+{more}>", str(SEEDS[(SEEDS.index(seed) + more) % len(SEEDS)]))
    word = re.sub(
        r"<starts>/([\w-]+)\.safetensors", r"<starts>/\1/product.safetensors", word.replace("<seed>", str(seed))
    )
    return word.replace("<starts>", str((options.out / "float").resolve())).replace("<bits>", bits)


def _data(options: argparse.Namespace) -> str:
    return f"data={{name: folder, root: {options.root.resolve()}, batch: 128, val: 0.1}}"


def _file(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name)


def _predict(folder: Path) -> None:
    """Keep which test images the exported file has right."""
    from qkd.export import predict
    from qkd.pipeline.evaluate import eval_images
    from qkd.storage.run import Run

    found = eval_images(Run.open(folder))
    assert found is not None
    logits = predict(folder / "student.onnx", found.images, threads=1)
    np.save(folder / PREDICTIONS, logits.argmax(1) == found.labels)


@contextmanager
def claimed(job: Job, options: argparse.Namespace) -> Iterator[bool]:
    """Whether this worker has the job to itself."""
    place = options.out / "claims" / f"{job.folder.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def work(options: argparse.Namespace) -> None:
    """Take jobs until none is left that could be begun. A row waits for the float starts it names."""
    for job in jobs(options):
        needed = re.findall(r"start_from: (\S+?/product\.safetensors)", " ".join(job.words))
        if job.done or not all(Path(path).is_file() for path in needed):
            continue
        with claimed(job, options) as mine:
            if not mine or job.done:
                continue
            print(f"{job.folder.name} ...", flush=True)
            try:
                job.run(options)
            except Failed as error:
                print(error, file=sys.stderr, flush=True)


def results(name: str, bits: str, options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Seed -> what a row's finished runs found."""
    found = {}
    for seed in SEEDS:
        job = row_job(name, bits, seed, options)
        if job.done:
            found[seed] = {**exported(job.folder), "right": np.load(job.folder / PREDICTIONS)}
    return found


def compared(found: Mapping[int, Any], base: Mapping[int, Any]) -> str:
    """The mean difference in points over the seeds that both have, and McNemar's p: of one seed, or of which row got each image
    right more often over the seeds. The p knows nothing of the spread between seeds, which stands beside it."""
    both = sorted(found.keys() & base.keys())
    if not both:
        return "|"
    differences = [found[seed]["onnx_top1"] - base[seed]["onnx_top1"] for seed in both]
    found_right, base_right = (np.sum([rows[seed]["right"] for seed in both], axis=0) for rows in (found, base))
    pair = paired(base_right, found_right)
    spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.2f}{spread} | {_p(pair.p)} ({pair.only_second} : {pair.only_first})"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"1e{math.ceil(math.log10(p)) if p > 0 else -300}"


def table(options: argparse.Namespace) -> None:
    """Every row that has a finished run, beside plain QAT and the best plain KD."""
    for bits in SCHEMES:
        found = {name: rows for name in ROWS if (rows := results(name, bits, options))}
        if not found:
            continue
        teachers = [name for name in found if name.startswith("kd")]
        best = max(teachers, key=lambda name: _mean(found[name]), default="qat")
        print(f"\n{STUDENT}, {bits}, {TRAIN['epochs']} epochs\n")
        print(f"| row | seeds | onnxruntime | - qat | p (won : lost) | - {best} | p (won : lost) | CPU min |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name, rows in found.items():
            pairs = [compared(rows, found.get(base, {})) for base in ("qat", best)]
            minutes = statistics.mean(row["training_cpu_seconds"] for row in rows.values()) / 60
            tops = cell([row["onnx_top1"] for row in rows.values()])
            print(f"| {name} | {len(rows)} | {tops} | {pairs[0]} | {pairs[1]} | {minutes:.0f} |")


def _mean(rows: Mapping[int, Any]) -> float:
    return statistics.mean(row["onnx_top1"] for row in rows.values())


def searched(options: argparse.Namespace) -> None:
    """The validation accuracy of every setting that was tried."""
    print("| row | setting | val top-1 |\n| --- | --- | ---: |")
    for name, settings in SEARCH.items():
        for setting in settings:
            job = row_job(name, "w2a2", SEEDS[0], options, setting)
            if job.done:
                value = json.loads((job.folder / "result.json").read_text())["val_top1"]
                print(f"| {name} | `{setting}` | {value:.2f} |")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-full"))
    parser.add_argument("--only", nargs="+", help="names of rows; all of them if left out")
    parser.add_argument("--search", action="store_true", help="the settings of SEARCH instead of the rows")
    parser.add_argument("--table", action="store_true", help="print what is finished, and train nothing")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    if options.table:
        (searched if options.search else table)(options)
    else:
        work(options)
