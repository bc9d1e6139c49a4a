"""What training costs in qkd and in the tools one would take instead, beside a bare loop. Two Markdown tables.

    python benchmarks/rivals_cost.py [--only qkd_kd,torchdistill_kd,qkd_qat,brevitas_qat,...]

Distillation: a float ResNet-20 learns from a frozen one of twice its width, from labels, logits and the attention maps of
three layers; a tool's loop over four batches beside a loop written by hand. Quantization: a step of ResNet-20 at W8A8
beside a step of the float network. Each tool in an environment of its own (see `rivals.py`), one thread; within that
process the two take turns, so that only the ratio of their medians means something, and that may be compared. Processor time,
not the clock's. What was timed is kept in --out; delete a folder to have it again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interleaved import table
from rivals import RIVALS, run

DISTILLATION = {"qkd_kd": ("qkd", "torch"), "torchdistill_kd": ("torchdistill", "torchdistill")}
QUANTIZATION = {"qkd_qat": ("qkd", "torch")} | {
    name: (rival.title, rival.tool) for name, rival in RIVALS.items() if name.endswith("_qat")
}
"""Script -> what the row is called, whose environment it runs in."""


def rows_of(scripts: dict[str, tuple[str, str]], options: argparse.Namespace) -> list[list[object]]:
    rows: list[list[object]] = []
    for script, (title, tool) in scripts.items():
        if options.only and script not in options.only.split(","):
            continue
        given: dict[str, Any] = {"task": "cost", "batch": options.batch, "rounds": options.rounds}
        found = run(script, tool, options.out / script, options.venvs, **given)
        if "error" in found:
            rows.append([title, "", "", "", found["error"][:160].replace("|", "/")])
            continue
        (base, least), *others = found["milliseconds"].items()
        version = "" if tool == "torch" else found["version"]
        rows += [
            [title if name == tool else name, f"{base} {least:.0f}", time, time / least, version]
            for name, time in others
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of scripts, separated by commas; all of them if left out")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/rivals/cost"))
    parser.add_argument("--venvs", type=Path, default=Path("runs/rivals/venvs"))
    options = parser.parse_args()
    for what, scripts in (("distillation, four batches", DISTILLATION), ("QAT W8A8, a step", QUANTIZATION)):
        print(f"\n{what}, CPU ms\n")
        print(table(("tool", "beside", "ms", "ratio", ""), rows_of(scripts, options)))


if __name__ == "__main__":
    main()
