"""What a checkout produces, as hashes and numbers: two checkouts that behave alike write equal records.

    python benchmarks/identity.py record before.json --source ../old-checkout
    python benchmarks/identity.py record after.json
    python benchmarks/identity.py compare before.json after.json

For every digits recipe (two epochs, one thread) the record holds the losses of each epoch, the sha256 of the trained
product, of its float start and of each exported file, and what the commands print with ``--json``. Times are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TIMED = (
    *("seconds", "training_seconds", "training_cpu_seconds", "images_per_second", "p50_ms", "p95_ms", "load_ms"),
    *("float_p50_ms", "rounds", "speedup", "peak_mb", "peak_memory_mb", "forward_ms", "learn_ms"),
)
SHORT = ("train.epochs=2", "pretrain.epochs=2")
LONGER = {"digits_three_phase_w2a2": "train.epochs=3"}
LISTS = ("methods", "networks", "schemes", "datasets", "recipes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("output", type=Path)
    recording.add_argument("--source", type=Path, default=Path(__file__).parent.parent)
    recording.add_argument("--only", default="", help="recipes whose names contain this")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.verb == "record":
        given.output.write_text(json.dumps(record(given.source.resolve(), given.only), indent=1) + "\n")
    else:
        sys.exit(compare(*(json.loads(path.read_text()) for path in (given.before, given.after))))


def record(source: Path, only: str) -> dict[str, Any]:
    names = sorted(path.stem for path in (source / "recipes").glob("digits_*.yaml") if only in path.stem)
    with tempfile.TemporaryDirectory() as scratch:
        qkd = Checkout(source, Path(scratch))
        found: dict[str, Any] = {f"ls {what}": plain(qkd("ls", what, "--json")) for what in LISTS}
        found["schema"] = structure(json.loads(qkd("schema")))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found |= dict(zip(names, pool.map(lambda name: of_recipe(qkd, name), names), strict=True))
        if "digits_cmtkd_w2a2" in names:
            found["cmtkd, whole-tensor kernels"] = trained(qkd, "digits_cmtkd_w2a2", "eager", "--compile", "off")
            found["allocate"] = plain(
                qkd("allocate", "digits_qat_w4a4", *SHORT, "--bits", "3", "--threads", "1", "--json")
            )
    return found


class Checkout:
    """``qkd`` of a source folder, run in a scratch folder with a cache of its own."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self.source, self.scratch = source, scratch

    def __call__(self, *words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.source), "XDG_CACHE_HOME": str(self.scratch / "cache")}
        line = [sys.executable, "-m", "qkd", *words]
        done = subprocess.run(line, cwd=self.scratch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stderr}")
        return done.stdout


def trained(qkd: Checkout, name: str, run: str, *more: str) -> dict[str, Any]:
    """A short training: its result, its losses, its product."""
    changes = [LONGER.get(name, SHORT[0]), SHORT[1]]
    result = qkd("train", name, *changes, "--out", run, "--threads", "1", "--quiet", "--json", *more)
    folder = qkd.scratch / run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = [path for path in ("product.safetensors", "float.safetensors") if (folder / path).is_file()]
    return {"train": plain(result), "metrics": untimed(lines), **{path: sha256(folder / path) for path in files}}


def of_recipe(qkd: Checkout, name: str) -> dict[str, Any]:
    """A short training and all that is made of it."""
    found = {"check": plain(qkd("check", name, "--json")), **trained(qkd, name, name)}
    found["export"] = plain(qkd("export", name, "--json"))
    packed = ["--storage", "packed", "--input", "uint8", "--layout", "nhwc"]
    found["packed"] = plain(qkd("export", name, "-o", f"{name}/packed.onnx", *packed, "--json"))
    found["bench"] = plain(qkd("bench", name, "--batch", "1", "--seconds", "0.05", "--json"))
    found["eval"] = plain(qkd("eval", name, "--threads", "1", "--json"))
    found["integer"] = plain(qkd("eval", name, "--integer", "--json"))
    found["compare"] = plain(qkd("compare", name, "--json"))
    files = ("student.onnx", "float.onnx", "packed.onnx", "packed.float.onnx", "infer.py", "recipe.yaml", "data.json")
    return {**found, **{file: sha256(qkd.scratch / name / file) for file in files}}


def plain(printed: str) -> Any:
    return untimed(json.loads(printed))


def untimed(value: Any) -> Any:
    """The value with every time replaced; keys and their order stay."""
    if isinstance(value, dict):
        return {key: "a time" if key in TIMED and each is not None else untimed(each) for key, each in value.items()}
    return [untimed(each) for each in value] if isinstance(value, list) else value


def structure(schema: Any) -> Any:
    """A JSON Schema without its help texts."""
    if isinstance(schema, dict):
        return {key: structure(each) for key, each in schema.items() if key != "description" or isinstance(each, dict)}
    return [structure(each) for each in schema] if isinstance(schema, list) else schema


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(before: Any, after: Any) -> int:
    """Prints every difference of the entries that both have. -> 1 if there is one"""
    both = [name for name in before if name in after]
    before, after = (untimed({name: record[name] for name in both}) for record in (before, after))
    found = list(differences(before, after))
    for line in found[:200]:
        print(line)
    print(f"{len(found)} differences in {len(before)} entries, {sum(1 for _ in leaves(before))} values")
    return bool(found)


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        if list(before) != list(after):
            gone, new = [k for k in before if k not in after], [k for k in after if k not in before]
            yield f"{where}: keys {gone} -> {new}, or their order"
        for key in before.keys() & after.keys():
            yield from differences(before[key], after[key], f"{where} / {key}" if where else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif before != after:
        yield f"{where}: {before!r:.200} -> {after!r:.200}"


def leaves(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inside is None:
        yield value
    else:
        for each in inside:
            yield from leaves(each)


if __name__ == "__main__":
    main()
