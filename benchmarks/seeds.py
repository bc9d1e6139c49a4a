"""Accuracy of recipes over seeds, of the exported file in onnxruntime: one Markdown table.

    python benchmarks/seeds.py digits_qat_w2a2 digits_kd_w2a2 digits_cmtkd_w2a2 --seeds 3 [a.b=value ...]

Every run is a folder under --out and is done once: started again, the script goes on where it was. A recipe that fails
is a row that says so, and exit code 1. "alarms" counts the quantizers of all runs that are dead, saturated or not finite
in the end (`qkd.quantizers.diagnostics`), "dead" those of them that give one code only. "CPU s" is processor time: on a busy
machine it says more than the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "float": "float_top1",
    "before": "before_top1",
    "validation": "val_top1",
    "fake-quantized": "top1",
    "onnxruntime": "onnx_top1",
    "training s": "training_seconds",
    "CPU s": "training_cpu_seconds",
}


class Failed(Exception):
    """A command that failed, with its output."""


def qkd(*words: str) -> dict[str, Any]:
    """One command; its JSON."""
    done = subprocess.run([sys.executable, "-m", "qkd", *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"qkd {' '.join(words)}\n{done.stderr}")
    return dict(json.loads(done.stdout))


def one(recipe: str, seed: int, out: Path, overrides: list[str], threads: str) -> dict[str, Any]:
    """One run, trained and exported, or read back if it is there."""
    folder = out / f"{Path(recipe).stem}-seed{seed}"
    trained([recipe, *overrides, f"seed={seed}", "--threads", threads], folder)
    return exported(folder)


def trained(words: list[str], folder: Path) -> None:
    """Train into a folder, unless that was done; a run that was broken off goes on."""
    if not (folder / "result.json").is_file():
        resume = ["--resume"] if folder.is_dir() else []
        qkd("train", *words, "--out", str(folder), "-q", *resume)


def exported(folder: Path, *flags: str) -> dict[str, Any]:
    """Export a trained run, unless that was done. -> its result, and what the export found"""
    if not (folder / "export.json").is_file():
        qkd("export", str(folder), *flags)
    result, export = (json.loads((folder / name).read_text()) for name in ("result.json", "export.json"))
    return {**result, "onnx_top1": export["top1_onnxruntime"], "equal": export["equal_fraction"]}


def cell(values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="recipes, and a.b=value overrides for all of them")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--threads", default="1")
    options = parser.parse_intermixed_args()
    overrides = [word for word in options.words if "=" in word]
    print("| recipe |", " | ".join(COLUMNS), "| equal | alarms, dead |")
    print("| --- |", " | ".join("---:" for _ in COLUMNS), "| ---: | ---: |")
    failed = False
    for recipe in (word for word in options.words if "=" not in word):
        try:
            rows = [
                one(recipe, seed, options.out, overrides, options.threads)
                for seed in range(options.first, options.first + options.seeds)
            ]
        except Failed as error:
            failed = True
            print(f"| {Path(recipe).stem} | failed |", flush=True)
            print(error, file=sys.stderr, flush=True)
            continue
        equal = min(row["equal"] for row in rows)
        cells = [cell([row.get(key) for row in rows]) for key in COLUMNS.values()]
        lines = [line for row in rows for line in row.get("alarms", [])]
        alarms = f"{len(lines)}, {sum(': dead' in line for line in lines)}"
        print(f"| {Path(recipe).stem} |", " | ".join(cells), f"| {100 * equal:.0f} % | {alarms} |", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
