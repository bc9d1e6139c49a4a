/* Batch norm in training and the rounding behind it, of images channels last: what lies between the two is never in memory.

   Forward reads x twice (for its statistics and to normalise it) and writes y; backward reads x and the gradient twice and
   writes one gradient. Done one after the other they are six more passes over memory.

   Channels repeat along a row of numbers. Arrays that belong to channels are repeated up to a period that vectors divide,
   so that one loop serves any number of channels; sums are kept for each place in it, block by block, and added up in
   double precision in an order that does not depend on threads. */
#include "grid.h"

#define BLOCK 32768
#define PERIOD 256
#define SAMPLED 64 /* rows that the sums of squares are centred by */

typedef struct {
  long channels, total, period, block, blocks;
} Shape;

static Shape shape_of(long rows, long channels) {
  long period = channels;
  while (period % LANES || period < PERIOD) period += channels;
  long block = (BLOCK / period > 1 ? BLOCK / period : 1) * period, total = rows * channels;
  return (Shape){channels, total, period, block, (total + block - 1) / block};
}

static void repeat(const float *values, float *periodic, Shape shape) {
  for (long j = 0; j < shape.period; j++) periodic[j] = values[j % shape.channels];
}

/* The sums of every channel over all blocks, kind by kind: sums holds `kinds` arrays of a period for each block. */
static void add_up(const float *sums, Shape shape, int kinds, double *totals) {
  for (long n = 0; n < kinds * shape.channels; n++) totals[n] = 0;
  for (long b = 0; b < shape.blocks; b++)
    for (int kind = 0; kind < kinds; kind++)
      for (long from = 0; from < shape.period; from += shape.channels) {
        const float *restrict found = sums + (b * kinds + kind) * shape.period + from;
        double *restrict total = totals + kind * shape.channels;
        for (long c = 0; c < shape.channels; c++) total[c] += found[c];
      }
}

static inline long least(long a, long b) { return a < b ? a : b; }

/* How many numbers of a block are left at i: a period, or what the last block has. */
static inline long left(Shape shape, long b, long i) {
  return least(shape.period, least((b + 1) * shape.block, shape.total) - i);
}

/* What is done with the numbers of one period. */

static inline void add_deviations(const real *restrict x, const float *restrict centre, float *restrict first,
                                  float *restrict second, long n) {
  for (long j = 0; j < n; j++) {
    float away = get(x[j]) - centre[j];
    first[j] += away;
    second[j] += away * away;
  }
}

typedef struct {
  float scale, low, high, bottom, top; /* the levels, and the numbers that they stand for */
} Grid;

static Grid grid_of(float step, float low, float high, float smallest) {
  float scale = scale_of(step, smallest);
  return (Grid){scale, low, high, low * scale, high * scale};
}

static inline void normalise(const real *restrict x, const float *restrict gain, const float *restrict offset,
                             real *restrict y, Grid grid, long n) {
  for (long j = 0; j < n; j++) {
    float ratio = (get(x[j]) * gain[j] + offset[j]) / grid.scale;
    y[j] = put(level(ratio, grid.low, grid.high) * grid.scale);
  }
}

typedef struct {
  float *gain, *offset, *centre, *slope, *shift; /* a period each */
} Line;

static inline void add_gradients(const real *restrict g, const real *restrict x, Line of, float *restrict to_bias,
                                 float *restrict to_weight, float *restrict to_step, Grid grid, long n) {
  const float *restrict gain = of.gain, *restrict offset = of.offset, *restrict centre = of.centre;
  for (long j = 0; j < n; j++) {
    float found = get(x[j]), given = get(g[j]), value = found * gain[j] + offset[j], ratio = value / grid.scale;
    float on = passes(value, grid.bottom, grid.top, given);
    to_bias[j] += on;
    to_weight[j] += on * (found - centre[j]);
    to_step[j] += given * level(ratio, grid.low, grid.high) - on * ratio;
  }
}

static inline void pass_on(const real *restrict g, const real *restrict x, Line of, real *restrict to_x, Grid grid, long n) {
  const float *restrict gain = of.gain, *restrict offset = of.offset, *restrict centre = of.centre;
  const float *restrict slope = of.slope, *restrict shift = of.shift;
  for (long j = 0; j < n; j++) {
    float found = get(x[j]), on = passes(found * gain[j] + offset[j], grid.bottom, grid.top, get(g[j]));
    to_x[j] = put(on * gain[j] + (found - centre[j]) * slope[j] + shift[j]);
  }
}

/* Mean and variance (biased) of every channel. */
static int statistics(const real *x, Shape shape, float *mean, float *variance, int threads) {
  long rows = shape.total / shape.channels, sampled = least(SAMPLED, rows);
  float *centre = malloc(shape.period * sizeof(float)), *sums = calloc(shape.blocks * 2 * shape.period, sizeof(float));
  double *totals = malloc(2 * shape.channels * sizeof(double));
  if (!centre || !sums || !totals) return free(centre), free(sums), free(totals), 0;
  for (long c = 0; c < shape.channels; c++) {
    double total = 0;
    for (long r = 0; r < sampled; r++) total += get(x[r * rows / sampled * shape.channels + c]);
    mean[c] = (float)(total / sampled);
  }
  repeat(mean, centre, shape);
#pragma omp parallel for num_threads(threads) schedule(static) if (many(shape.total, threads))
  for (long b = 0; b < shape.blocks; b++) {
    float *first = sums + b * 2 * shape.period, *second = first + shape.period;
    for (long i = b * shape.block, n; (n = left(shape, b, i)) > 0; i += shape.period)
      add_deviations(x + i, centre, first, second, n);
  }
  add_up(sums, shape, 2, totals);
  for (long c = 0; c < shape.channels; c++) {
    double away = totals[c] / rows, spread = totals[shape.channels + c] / rows - away * away;
    mean[c] = (float)(mean[c] + away);
    variance[c] = (float)(spread > 0 || spread != spread ? spread : 0);
  }
  return free(centre), free(sums), free(totals), 1;
}

/* y: normalised and rounded; saved: mean and 1 / deviation of every channel; running statistics move by `momentum`. */
int KERNEL(qkd_norm_round)(const real *x, real *y, float *saved, long rows, long channels, const float *weight, const float *bias,
                   float *running_mean, float *running_variance, float momentum, float eps, const float *step, float low,
                   float high, float smallest, int threads) {
  Shape shape = shape_of(rows, channels);
  float *gain = malloc(2 * (shape.period + channels) * sizeof(float)), *offset = gain + shape.period;
  if (!gain) return 0;
  float *factor = offset + shape.period, *term = factor + channels, *mean = saved, *inverse = saved + channels;
  if (!statistics(x, shape, mean, inverse, threads)) return free(gain), 0;
  for (long c = 0; c < channels; c++) {
    float variance = inverse[c], unbiased = (float)((double)variance * rows / (rows - 1));
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_variance[c] += momentum * (unbiased - running_variance[c]);
    inverse[c] = (float)(1 / sqrt((double)variance + eps));
    factor[c] = inverse[c] * weight[c];
    term[c] = bias[c] - mean[c] * factor[c];
  }
  repeat(factor, gain, shape), repeat(term, offset, shape);
  Grid grid = grid_of(*step, low, high, smallest);
#pragma omp parallel for num_threads(threads) schedule(static) if (many(shape.total, threads))
  for (long b = 0; b < shape.blocks; b++)
    for (long i = b * shape.block, n; (n = left(shape, b, i)) > 0; i += shape.period)
      normalise(x + i, gain, offset, y + i, grid, n);
  return free(gain), 1;
}

/* Gradients of x, weight, bias and step, from that of y. What batch norm made of x is computed again, not kept. */
int KERNEL(qkd_norm_round_backward)(const real *g, const real *x, const float *saved, real *to_x, float *to_weight, float *to_bias,
                            float *to_step, long rows, long channels, const float *weight, const float *bias,
                            const float *step, float low, float high, float factor, float smallest, int threads) {
  Shape shape = shape_of(rows, channels);
  float *lines = malloc((5 * shape.period + 2 * channels) * sizeof(float));
  float *sums = calloc(shape.blocks * 3 * shape.period, sizeof(float));
  double *totals = malloc(3 * channels * sizeof(double)), total = 0;
  if (!lines || !sums || !totals) return free(lines), free(sums), free(totals), 0;
  long p = shape.period;
  Line line = {lines, lines + p, lines + 2 * p, lines + 3 * p, lines + 4 * p};
  float *one = lines + 5 * p, *two = one + channels;
  const float *mean = saved, *inverse = saved + channels;
  for (long c = 0; c < channels; c++) one[c] = inverse[c] * weight[c], two[c] = bias[c] - mean[c] * one[c];
  repeat(one, line.gain, shape), repeat(two, line.offset, shape), repeat(mean, line.centre, shape);
  Grid grid = grid_of(*step, low, high, smallest);
#pragma omp parallel for num_threads(threads) schedule(static) if (many(shape.total, threads))
  for (long b = 0; b < shape.blocks; b++) {
    float *found = sums + b * 3 * p;
    for (long i = b * shape.block, n; (n = left(shape, b, i)) > 0; i += p)
      add_gradients(g + i, x + i, line, found, found + p, found + 2 * p, grid, n);
  }
  add_up(sums, shape, 3, totals);
  for (long c = 0; c < channels; c++) {
    double first = totals[c], second = totals[channels + c] * inverse[c], each = (double)one[c] / rows;
    total += totals[2 * channels + c];
    to_bias[c] = (float)first;
    to_weight[c] = (float)second;
    two[c] = (float)(-each * first);               /* what the mean takes from every gradient, */
    one[c] = (float)(-each * inverse[c] * second); /* and the variance, for a unit of x - mean */
  }
  *to_step = to_step_of(total, factor, grid.scale, *step, smallest);
  repeat(one, line.slope, shape), repeat(two, line.shift, shape);
#pragma omp parallel for num_threads(threads) schedule(static) if (many(shape.total, threads))
  for (long b = 0; b < shape.blocks; b++)
    for (long i = b * shape.block, n; (n = left(shape, b, i)) > 0; i += p) pass_on(g + i, x + i, line, to_x + i, grid, n);
  return free(lines), free(sums), free(totals), 1;
}
