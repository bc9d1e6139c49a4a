"""Facts that a result depends on: versions, processor, cores, memory. Importable without torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd import __version__

if TYPE_CHECKING:
    import torch


def environment(**more: Any) -> dict[str, Any]:
    """Facts that a result depends on: versions, processor, threads."""
    import torch

    return {
        "qkd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in ("torch", "torchvision", "brevitas", "onnx", "onnxruntime", "numpy")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(["qkd", *sys.argv[1:]]),
        **more,
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, and whether it has the 8-bit dot product that integer inference lives on."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    vnni = "vnni" in facts.get("flags", "")
    return f"{facts.get('model name', platform.machine())} ({'VNNI' if vnni else 'no VNNI'})"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> str:
    """The best integer dot product of this processor, as onnxruntime would use it, or its architecture."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return platform.machine()
    order = ("avx512_vnni", "avx_vnni", "avx512bw", "avx2", "i8mm", "asimddp", "asimd")
    return next((name for name in order if name in words), platform.machine())


def peak_memory(device: torch.device) -> float:
    """The largest memory in use so far, in MiB: of a CUDA device, else of this process."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(peak_of_process() / 2**10, 1)


def peak_of_process() -> float:
    """The largest memory that this process had in use so far, in KiB; 0 where the system does not tell."""
    status = Path("/proc/self/status")  # Linux, where getrusage starts from the peak of the parent process
    if status.is_file():
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if peak is not None:
            return float(peak.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**10 if sys.platform == "darwin" else float(used)
