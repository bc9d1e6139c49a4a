"""Rounding and its gradient in C: one pass over memory each, near the speed of a ReLU, without the price of `torch.compile`.

Compiled with the machine's own compiler when it is first asked for (half a second, once for a process) and loaded from a
folder that is gone afterwards. Where there is no compiler, `library` is None and the tensor operations do the work: the
same numbers, but for the order in which the gradient of a step is summed.
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
# what a compiler may not know, dropped one by one: threads, and the vectors of this very processor
OPTIONAL = (("-fopenmp", "-march=native"), ("-march=native",), ("-mcpu=native",), ())

SOURCE = r"""
#include <math.h>
#include <stdlib.h>
#define BLOCK 4096
#define LANES 16
#define FEW 32768

static inline float level(float ratio, float low, float high) {
  float code = rintf(ratio);
  return code < low ? low : (code > high ? high : code);
}

static inline long blocks_of(long count) { return (count + BLOCK - 1) / BLOCK; }

void qkd_round(const float *restrict x, float *restrict y, long rows, long count, const float *s, float low, float high,
               int threads) {
  long blocks = blocks_of(count);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * count > FEW)
  for (long b = 0; b < rows * blocks; b++) {
    long row = b / blocks, from = row * count + b % blocks * BLOCK, end = (row + 1) * count;
    if (from + BLOCK < end) end = from + BLOCK;
    float scale = s[row];
    for (long i = from; i < end; i++) y[i] = level(x[i] / scale, low, high) * scale;
  }
}

static inline float passes(float ratio, float low, float high, float g) { return ratio <= low || ratio >= high ? 0.f : g; }

/* Gradients of one block: that of x into passed, and the sum of g * (code - passing ratio), that of the scale. */
static double of_block(const float *restrict g, const float *restrict x, float *restrict passed, long n, float scale,
                       float low, float high) {
  float lanes[LANES] = {0};
  double total = 0;
  long i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) {
      float ratio = x[i + j] / scale, given = g[i + j], on = passes(ratio, low, high, given);
      lanes[j] += given * level(ratio, low, high) - on * ratio;
      passed[i + j] = on;
    }
  for (; i < n; i++) {
    float ratio = x[i] / scale, on = passes(ratio, low, high, g[i]);
    lanes[0] += g[i] * level(ratio, low, high) - on * ratio;
    passed[i] = on;
  }
  for (int j = 0; j < LANES; j++) total += lanes[j];
  return total;
}

/* passed: gradient of x; to_step: one number for each row. Returns whether there was memory. */
int qkd_differentiate(const float *g, const float *x, float *passed, float *to_step, long rows, long count,
                      const float *s, const float *step, float low, float high, float factor, float smallest, int threads) {
  long blocks = blocks_of(count);
  double *sums = malloc(rows * blocks * sizeof(double) + 1);
  if (!sums) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * count > FEW)
  for (long b = 0; b < rows * blocks; b++) {
    long row = b / blocks, from = row * count + b % blocks * BLOCK, n = (row + 1) * count - from;
    if (n > BLOCK) n = BLOCK;
    sums[b] = of_block(g + from, x + from, passed + from, n, s[row], low, high);
  }
  for (long row = 0; row < rows; row++) {
    double total = 0;
    for (long b = 0; b < blocks; b++) total += sums[row * blocks + b];
    float size = fabsf(step[row]);
    to_step[row] = (float)(total * factor * (s[row] / copysignf(size > smallest ? size : smallest, step[row])));
  }
  free(sums);
  return 1;
}
"""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where this machine has no C compiler that makes them."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        return None
    with TemporaryDirectory(prefix="qkd-", ignore_cleanup_errors=True) as folder:
        source, built = Path(folder) / "rounding.c", Path(folder) / "rounding.so"
        source.write_text(SOURCE)
        for flags in OPTIONAL:
            command = [found, *FLAGS, *flags, "-o", str(built), str(source), "-lm"]
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
    return library


def fits(x: Tensor, step: Tensor, s: Tensor) -> bool:
    """Whether the kernels can do it: float32 on the CPU, one step for all or one for each entry of the first axis."""
    return (
        x.is_cpu
        and x.dtype is step.dtype is s.dtype is torch.float32
        and (s.ndim == 0 or s.numel() == len(s) == len(x))
        and library() is not None
    )


def round_rows(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """``clip(round(x / s), low, high) * s`` in the layout of x, which is packed."""
    kernels, y, rows = library(), torch.empty_like(x), s.numel()
    assert kernels is not None
    count = x.numel() // rows
    kernels.qkd_round(x.data_ptr(), y.data_ptr(), rows, count, s.data_ptr(), low, high, torch.get_num_threads())
    return y


def differentiate_rows(
    g: Tensor, x: Tensor, s: Tensor, step: Tensor, low: int, high: int, factor: float, smallest: float
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
