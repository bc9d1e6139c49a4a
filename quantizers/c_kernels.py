"""Kernels in C: rounding and its gradient in one pass over memory each, near the speed of a ReLU, without the compilation
time of `torch.compile`; and batch norm with the rounding behind it, with fewer passes than batch norm and a ReLU.

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

import torch
from torch import Tensor

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
SOURCES = tuple(Path(__file__).parent / name for name in ("rounding.c", "norm.c"))
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
    library.qkd_round.argtypes = [pointer, pointer, number, number, pointer, real, real, threads]
    library.qkd_round.restype = None
    library.qkd_differentiate.argtypes = [*[pointer] * 4, number, number, pointer, pointer, *[real] * 4, threads]
    library.qkd_differentiate.restype = ctypes.c_int
    library.qkd_norm_round.argtypes = [
        *[pointer] * 3,
        number,
        number,
        *[pointer] * 4,
        real,
        real,
        pointer,
        *[real] * 3,
        threads,
    ]
    library.qkd_norm_round.restype = ctypes.c_int
    library.qkd_norm_round_backward.argtypes = [*[pointer] * 7, number, number, *[pointer] * 3, *[real] * 4, threads]
    library.qkd_norm_round_backward.restype = ctypes.c_int
    return library


def can_round(x: Tensor, step: Tensor, s: Tensor) -> bool:
    """Whether the kernels apply: float32 on the CPU, one scale for all or one for each entry of the first axis."""
    return (
        x.is_cpu
        and step.is_cpu
        and s.is_cpu
        and x.dtype is step.dtype is s.dtype is torch.float32
        and (s.ndim == 0 or s.numel() == len(s) == len(x))
        and library() is not None
    )


def round_rows(x: Tensor, s: Tensor, low: float, high: float) -> Tensor:
    """The nearest of the levels ``s * {low, low + 1, ..., high}`` in the layout of x, which is packed."""
    kernels, y, rows = library(), torch.empty_like(x), s.numel()
    assert kernels is not None
    count = x.numel() // rows
    kernels.qkd_round(x.data_ptr(), y.data_ptr(), rows, count, s.data_ptr(), low, high, torch.get_num_threads())
    return y


def differentiate_rows(
    g: Tensor, x: Tensor, s: Tensor, step: Tensor, low: float, high: float, factor: float, smallest: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the step; g and x are packed alike."""
    kernels, rows, to_x, to_step = library(), s.numel(), torch.empty_like(x), torch.empty_like(step)
    assert kernels is not None
    pointers = (tensor.data_ptr() for tensor in (g, x, to_x, to_step))
    grid = s.data_ptr(), step.data_ptr(), low, high
    if not kernels.qkd_differentiate(
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
    kernels, y, saved = library(), torch.empty_like(x), torch.empty(2, x.shape[1])
    assert kernels is not None
    pointers = (tensor.data_ptr() for tensor in (x, y, saved))
    affine = (tensor.data_ptr() for tensor in (weight, bias, *running))
    size, threads = (x.numel() // x.shape[1], x.shape[1]), torch.get_num_threads()
    if not kernels.qkd_norm_round(
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
    kernels, found = library(), tuple(torch.empty_like(tensor) for tensor in (x, weight, bias, step))
    assert kernels is not None
    pointers = (tensor.data_ptr() for tensor in (g, x, saved, *found))
    size, grid = (x.numel() // x.shape[1], x.shape[1]), (low, high, factor, smallest)
    learned = (tensor.data_ptr() for tensor in (weight, bias, step))
    if not kernels.qkd_norm_round_backward(*pointers, *size, *learned, *grid, torch.get_num_threads()):
        raise MemoryError("no memory for the sums of a batch norm's gradient")
    to_x, to_weight, to_bias, to_step = found
    return to_x, to_weight, to_bias, to_step
