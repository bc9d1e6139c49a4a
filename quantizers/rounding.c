/* Rounding to a uniform grid and its gradient, one pass over memory each. */
#include "grid.h"

#define BLOCK 4096

static inline long blocks_of(long count) { return (count + BLOCK - 1) / BLOCK; }

/* One block; zero is a constant wherever this is called, so that no loop has a branch. */
static inline void round_block(const real *restrict x, real *restrict y, long n, float scale, float low, float high,
                               int zero) {
  for (long i = 0; i < n; i++) y[i] = put(level_of(get(x[i]) / scale, low, high, zero) * scale);
}

void KERNEL(qkd_round)(const real *restrict x, real *restrict y, long rows, long count, const float *s, float low, float high,
               int threads) {
  long blocks = blocks_of(count);
#pragma omp parallel for num_threads(threads) schedule(static) if (many(rows * count, threads))
  for (long b = 0; b < rows * blocks; b++) {
    long row = b / blocks, from = row * count + b % blocks * BLOCK, end = (row + 1) * count;
    if (from + BLOCK < end) end = from + BLOCK;
    if (has_zero(low))
      round_block(x + from, y + from, end - from, s[row], low, high, 1);
    else
      round_block(x + from, y + from, end - from, s[row], low, high, 0);
  }
}

/* Gradients of one block: that of x into passed, and the sum of g * (level - passing ratio), that of the scale. */
static inline double of_block(const real *restrict g, const real *restrict x, real *restrict passed, long n, float scale,
                              float low, float high, int zero) {
  float lanes[LANES] = {0};
  double total = 0;
  long i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) {
      float ratio = get(x[i + j]) / scale, given = get(g[i + j]), on = passes(ratio, low, high, given);
      lanes[j] += given * level_of(ratio, low, high, zero) - on * ratio;
      passed[i + j] = put(on);
    }
  for (; i < n; i++) {
    float ratio = get(x[i]) / scale, given = get(g[i]), on = passes(ratio, low, high, given);
    lanes[0] += given * level_of(ratio, low, high, zero) - on * ratio;
    passed[i] = put(on);
  }
  for (int j = 0; j < LANES; j++) total += lanes[j];
  return total;
}

/* passed: gradient of x; to_step: one number for each row. Returns 0 where there is no memory, else 1. */
int KERNEL(qkd_differentiate)(const real *g, const real *x, real *passed, float *to_step, long rows, long count,
                      const float *s, const float *step, float low, float high, float factor, float smallest, int threads) {
  long blocks = blocks_of(count);
  double *sums = malloc(rows * blocks * sizeof(double) + 1);
  if (!sums) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (many(rows * count, threads))
  for (long b = 0; b < rows * blocks; b++) {
    long row = b / blocks, from = row * count + b % blocks * BLOCK, n = (row + 1) * count - from;
    if (n > BLOCK) n = BLOCK;
    sums[b] = has_zero(low) ? of_block(g + from, x + from, passed + from, n, s[row], low, high, 1)
                            : of_block(g + from, x + from, passed + from, n, s[row], low, high, 0);
  }
  for (long row = 0; row < rows; row++) {
    double total = 0;
    for (long b = 0; b < blocks; b++) total += sums[row * blocks + b];
    to_step[row] = to_step_of(total, factor, s[row], step[row], smallest);
  }
  free(sums);
  return 1;
}
