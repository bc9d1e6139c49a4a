"""Facts about this machine and process that a result depends on: versions, processor, cores, memory.

Importing this module does not import torch, so that short-lived processes can measure their memory with it.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd import __version__

if TYPE_CHECKING:
    import torch

CPU_INFO, PROCESS_STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")  # Linux only
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx512bw", "avx2", "i8mm", "asimddp", "asimd")
"""The instruction sets with which onnxruntime multiplies 8-bit integers, fastest first."""


def environment(**more: Any) -> dict[str, Any]:
    """The versions of qkd and its dependencies, processor, threads, GPU and command line, with ``more`` added."""
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
    """The processor's name, and whether it has VNNI, the 8-bit dot product that fast integer inference needs."""
    if not CPU_INFO.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in CPU_INFO.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    vnni = "vnni" in fields.get("flags", "")
    return f"{fields.get('model name', platform.machine())} ({'VNNI' if vnni else 'no VNNI'})"


def usable_cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> str:
    """The fastest instruction set for integer dot products that this processor has, or else its architecture."""
    try:
        flags = set(CPU_INFO.read_text().split())
    except OSError:
        return platform.machine()
    return next((name for name in DOT_PRODUCTS if name in flags), platform.machine())


def peak_memory(device: torch.device) -> float:
    """The peak memory in MiB, to one decimal: of the GPU if ``device`` is one, else of this process (0 if unknown)."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(peak_process_kib() / 2**10, 1)


def peak_process_kib() -> float:
    """The peak resident memory of this process in KiB; 0 where the operating system does not report it (Windows)."""
    # on Linux, what getrusage reports includes the peak of the parent process before exec
    lines = PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform == "darwin" else peak
