"""Kernels in C: rounding and its gradient in one pass over memory each, near the speed of a ReLU, without the compilation
time of `torch.compile`; and batch norm with the rounding behind it, with fewer passes than batch norm and a ReLU. Each is
there for float32 and for bfloat16, what autocast makes of a convolution's output; both compute in float32.

They are compiled with the machine's own compiler on first use (half a second, once for a process) and loaded from a
temporary folder, which is removed. Where there is no compiler, `library` returns None and tensor operations are used: the
same numbers, except for the order in which the gradient of a scale is summed.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
NAMES = ("rounding.c", "norm.c", "rounding_bfloat16.c", "norm_bfloat16.c")
SOURCES = tuple(Path(__file__).parent / name for name in NAMES)
SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16"}  # of a kernel's name, by the type of the tensors it takes
# flags that a compiler may not have, tried in this order: threads, and the vector instructions of this processor
OPTIONAL = (("-fopenmp", "-march=native"), ("-march=native",), ("-mcpu=native",), ())


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where this machine has no C compiler that makes them."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        return None
    with TemporaryDirectory(prefix="qkd-", ignore_cleanup_errors=True) as folder:
        built = Path(folder) / "kernels.so"
        for flags in OPTIONAL:
            command = [found, *FLAGS, *flags, "-o", str(built), *map(str, SOURCES), "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                return _declared(ctypes.CDLL(str(built)))
            except (OSError, subprocess.SubprocessError) as error:
                logging.getLogger("qkd").debug("%s: %s", " ".join(command), error)
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, real, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    size, grid = [number, number], [pointer, real, real]
    kinds: dict[str, tuple[list[Any], Any]] = {
        "qkd_round": ([pointer] * 2 + size + grid + [threads], None),
        "qkd_differentiate": ([pointer] * 4 + size + [pointer, pointer, *[real] * 4, threads], ctypes.c_int),
        "qkd_norm_round": (
            [pointer] * 3 + size + [pointer] * 4 + [real, real] + grid + [real, threads],
            ctypes.c_int,
        ),
        "qkd_norm_round_backward": ([pointer] * 7 + size + [pointer] * 3 + [real] * 4 + [threads], ctypes.c_int),
    }
    for suffix in SUFFIXES.values():
        for name, (argument_types, result) in kinds.items():
            function = getattr(library, name + suffix)
            function.argtypes, function.restype = argument_types, result
    return library


def _kernel(name: str, x: Tensor) -> Any:
    """The kernel for tensors of the type of x."""
    kernels = library()
    assert kernels is not None
    return getattr(kernels, name + SUFFIXES[x.dtype])


def can_round(x: Tensor, step: Tensor, s: Tensor) -> bool:
    """Whether the kernels apply: on the CPU, one scale for all or one for each entry of the first axis, of float32; x of
    float32 or bfloat16."""
    return (
        x.is_cpu
        and step.is_cpu
        and s.is_cpu
        and x.dtype in SUFFIXES
        and step.dtype is s.dtype is torch.float32
        and (s.ndim == 0 or s.numel() == len(s) == len(x))
        and library() is not None
    )


def round_rows(x: Tensor, s: Tensor, low: float, high: float) -> Tensor:
    """The nearest of the levels ``s * {low, low + 1, ..., high}`` in the layout of x, which is packed."""
    y, rows = torch.empty_like(x), s.numel()
    count = x.numel() // rows
    _kernel("qkd_round", x)(x.data_ptr(), y.data_ptr(), rows, count, s.data_ptr(), low, high, torch.get_num_threads())
    return y


def differentiate_rows(
    g: Tensor, x: Tensor, s: Tensor, step: Tensor, low: float, high: float, factor: float, smallest: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the step; g and x are packed alike."""
    rows, to_x, to_step = s.numel(), torch.empty_like(x), torch.empty_like(step)
    pointers = (tensor.data_ptr() for tensor in (g, x, to_x, to_step))
    grid = s.data_ptr(), step.data_ptr(), low, high
    if not _kernel("qkd_differentiate", x)(
        *pointers, rows, x.numel() // rows, *grid, factor, smallest, torch.get_num_threads()
    ):
        raise MemoryError("no memory for the sums of a quantizer's gradient")
    return to_x, to_step


def norm_round(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    step: Tensor,
    *,
    momentum: float,
    eps: float,
    low: int,
    high: int,
    smallest: float,
) -> tuple[Tensor, Tensor]:
    """Batch norm of x in training, rounded; x is channels last. -> y, and (2, channels): means and 1 / deviations

    The running mean and variance are updated as batch norm does.
    """
    y, saved = torch.empty_like(x), torch.empty(2, x.shape[1])
    pointers = (tensor.data_ptr() for tensor in (x, y, saved))
    affine = (tensor.data_ptr() for tensor in (weight, bias, *running))
    size, threads = (x.numel() // x.shape[1], x.shape[1]), torch.get_num_threads()
    if not _kernel("qkd_norm_round", x)(
        *pointers, *size, *affine, momentum, eps, step.data_ptr(), low, high, smallest, threads
    ):
        raise MemoryError("no memory for the statistics of a batch norm")
    return y, saved


def differentiate_norm_round(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    bias: Tensor,
    step: Tensor,
    low: int,
    high: int,
    factor: float,
    smallest: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and step; g and x are channels last."""
    found = tuple(torch.empty_like(tensor) for tensor in (x, weight, bias, step))
    pointers = (tensor.data_ptr() for tensor in (g, x, saved, *found))
    size, grid = (x.numel() // x.shape[1], x.shape[1]), (low, high, factor, smallest)
    learned = (tensor.data_ptr() for tensor in (weight, bias, step))
    if not _kernel("qkd_norm_round_backward", x)(*pointers, *size, *learned, *grid, torch.get_num_threads()):
        raise MemoryError("no memory for the sums of a batch norm's gradient")
    to_x, to_weight, to_bias, to_step = found
    return to_x, to_weight, to_bias, to_step
