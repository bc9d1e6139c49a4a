"""Virtual environments of the tools, and how a script of this folder is run in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEEDS: Mapping[str, tuple[str, ...]] = {
    "torch": (),
    "brevitas": ("brevitas==0.13.4", "onnxoptimizer==0.4.2"),
    "nncf": ("nncf==3.4.0", "torchao==0.18.0"),
    "torchao": ("torchao==0.18.0", "onnxscript==0.7.2"),
    "aimet-onnx": ("aimet-onnx==2.42.0",),
    "aimet-torch": ("aimet-torch==2.42.0",),
    "nvidia-modelopt": ("nvidia-modelopt==0.47.0", "requests==2.34.2"),
    "torchdistill": ("torchdistill==1.1.5",),
}
"""Tool -> what is installed for it; ModelOpt imports requests and NNCF's strip torchao without asking for it."""


def python_of(tool: str, venvs: Path) -> Path:
    """The Python of a tool's environment, which is made if it is not there or has other versions."""
    folder, wanted = (venvs / tool).absolute(), "\n".join(NEEDS[tool])
    python, made = folder / "bin" / "python", folder / "made.txt"
    if not made.is_file() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the like, behind its own
        if NEEDS[tool]:
            with (folder / "pip.txt").open("w") as output:
                line = [str(python), "-m", "pip", "install", *NEEDS[tool]]
                subprocess.run(line, check=True, stdout=output, stderr=output)
        made.write_text(wanted)
    return python


def run(script: str, tool: str, folder: Path, venvs: Path, **job: Any) -> dict[str, Any]:
    """What a script said in its folder, from before or from now; ``error`` if it came to no good end.

    A folder that another job left, or one that was broken off, is made anew.
    """
    said, log, kept = folder / "said.json", folder / "log.txt", folder / "job.json"
    words = json.dumps({"tool": tool, "out": str(folder.absolute()), **job})
    same = not kept.is_file() or kept.read_text() == words
    if same and said.is_file() and "finished" in json.loads(said.read_text()):
        return dict(json.loads(said.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kept.write_text(words)
    settings = {
        "PYTHONPATH": os.pathsep.join(str(place.absolute()) for place in (HERE.parents[1], HERE.parent)),
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str((venvs / tool / "extensions").absolute()),
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",  # it compiles for a minute or more where the machine is busy
    }
    with log.open("w") as output:
        line = [str(python_of(tool, venvs)), str((HERE / f"{script}.py").absolute()), words]
        code = subprocess.run(
            line, env=os.environ | settings, stdout=output, stderr=output, cwd=folder, check=False
        ).returncode
    found = json.loads(said.read_text()) if said.is_file() else {}
    if code and "error" not in found:
        found["error"] = ([f"exit code {code}", *filter(str.strip, log.read_text().splitlines())])[-1]
    said.write_text(json.dumps(found | {"finished": True}, indent=1) + "\n")
    return dict(found)
