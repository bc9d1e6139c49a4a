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

#define EACH_BLOCK                                                                                        \
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1 && shape.total > FEW)") \
  for (long b = 0; b < shape.blocks; b++)
#define EACH_PERIOD \
  for (long i = b * shape.block, end = least(i + shape.block, shape.total); i < end; i += shape.period)
#define EACH_NUMBER                                 \
  for (long m = least(shape.period, end - i); m; m = 0) \
    _Pragma("omp simd") for (long j = 0; j < m; j++)

/* Mean and variance (biased) of every channel. */
static int statistics(const float *restrict x, Shape shape, float *mean, float *variance, int threads) {
  long rows = shape.total / shape.channels, sampled = least(SAMPLED, rows);
  float *centre = malloc(shape.period * sizeof(float)), *sums = calloc(shape.blocks * 2 * shape.period, sizeof(float));
  double *totals = malloc(2 * shape.channels * sizeof(double));
  if (!centre || !sums || !totals) return free(centre), free(sums), free(totals), 0;
  for (long c = 0; c < shape.channels; c++) {
    double total = 0;
    for (long r = 0; r < sampled; r++) total += x[r * rows / sampled * shape.channels + c];
    mean[c] = (float)(total / sampled);
  }
  repeat(mean, centre, shape);
  EACH_BLOCK {
    float *restrict first = sums + b * 2 * shape.period, *restrict second = first + shape.period;
    EACH_PERIOD EACH_NUMBER {
      float away = x[i + j] - centre[j];
      first[j] += away;
      second[j] += away * away;
    }
  }
  add_up(sums, shape, 2, totals);
  for (long c = 0; c < shape.channels; c++) {
    double away = totals[c] / rows, spread = totals[shape.channels + c] / rows - away * away;
    mean[c] = (float)(mean[c] + away);
    variance[c] = (float)(spread > 0 ? spread : 0);
  }
  return free(centre), free(sums), free(totals), 1;
}

/* y: normalised and rounded; saved: mean and 1 / deviation of every channel; running statistics move by `momentum`. */
int qkd_norm_round(const float *restrict x, float *restrict y, float *saved, long rows, long channels, const float *weight,
                   const float *bias, float *running_mean, float *running_variance, float momentum, float eps,
                   const float *step, float low, float high, float smallest, int threads) {
  Shape shape = shape_of(rows, channels);
  float *gain = malloc(2 * (shape.period + channels) * sizeof(float)), *offset = gain + shape.period;
  if (!gain) return 0;
  float *of_channel = offset + shape.period, *mean = saved, *inverse = saved + channels;
  if (!statistics(x, shape, mean, inverse, threads)) return free(gain), 0;
  for (long c = 0; c < channels; c++) {
    float variance = inverse[c], unbiased = (float)((double)variance * rows / (rows - 1));
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_variance[c] += momentum * (unbiased - running_variance[c]);
    inverse[c] = (float)(1 / sqrt((double)variance + eps));
    of_channel[c] = inverse[c] * weight[c];
    of_channel[channels + c] = bias[c] - mean[c] * of_channel[c];
  }
  repeat(of_channel, gain, shape);
  repeat(of_channel + channels, offset, shape);
  float scale = scale_of(*step, smallest);
  EACH_BLOCK EACH_PERIOD EACH_NUMBER y[i + j] = level((x[i + j] * gain[j] + offset[j]) / scale, low, high) * scale;
  return free(gain), 1;
}

static inline float passes(float value, float bottom, float top, float g) { return value <= bottom || value >= top ? 0.f : g; }

/* Gradients of x, weight, bias and step, from that of y. What batch norm made of x is computed again, not kept. */
int qkd_norm_round_backward(const float *restrict g, const float *restrict x, const float *saved, float *restrict to_x,
                            float *to_weight, float *to_bias, float *to_step, long rows, long channels,
                            const float *weight, const float *bias, const float *step, float low, float high, float factor,
                            float smallest, int threads) {
  Shape shape = shape_of(rows, channels);
  float *gain = malloc((5 * shape.period + 2 * channels) * sizeof(float)), *offset = gain + shape.period;
  float *sums = calloc(shape.blocks * 3 * shape.period, sizeof(float));
  double *totals = malloc(3 * channels * sizeof(double)), total = 0;
  if (!gain || !sums || !totals) return free(gain), free(sums), free(totals), 0;
  float *centre = offset + shape.period, *slope = centre + shape.period, *shift = slope + shape.period;
  float *one = shift + shape.period, *two = one + channels;
  const float *mean = saved, *inverse = saved + channels;
  for (long c = 0; c < channels; c++) one[c] = inverse[c] * weight[c], two[c] = bias[c] - mean[c] * one[c];
  repeat(one, gain, shape), repeat(two, offset, shape), repeat(mean, centre, shape);
  float scale = scale_of(*step, smallest), bottom = low * scale, top = high * scale;
  EACH_BLOCK {
    float *restrict of_bias = sums + b * 3 * shape.period, *restrict of_weight = of_bias + shape.period,
                    *restrict of_step = of_weight + shape.period;
    EACH_PERIOD EACH_NUMBER {
      float value = x[i + j] * gain[j] + offset[j], ratio = value / scale, on = passes(value, bottom, top, g[i + j]);
      of_bias[j] += on;
      of_weight[j] += on * (x[i + j] - centre[j]);
      of_step[j] += g[i + j] * level(ratio, low, high) - on * ratio;
    }
  }
  add_up(sums, shape, 3, totals);
  for (long c = 0; c < channels; c++) {
    double first = totals[c], second = totals[channels + c] * inverse[c];
    total += totals[2 * channels + c];
    to_bias[c] = (float)first;
    to_weight[c] = (float)second;
    two[c] = (float)(-(double)one[c] * first / rows);                    /* what the mean takes from every gradient, */
    one[c] = (float)(-(double)one[c] * inverse[c] * second / rows);      /* and the variance, for a unit of x - mean */
  }
  *to_step = to_step_of(total, factor, scale, *step, smallest);
  repeat(one, slope, shape), repeat(two, shift, shape);
  EACH_BLOCK EACH_PERIOD EACH_NUMBER {
    float on = passes(x[i + j] * gain[j] + offset[j], bottom, top, g[i + j]);
    to_x[i + j] = on * gain[j] + (x[i + j] - centre[j]) * slope[j] + shift[j];
  }
  return free(gain), free(sums), free(totals), 1;
}
