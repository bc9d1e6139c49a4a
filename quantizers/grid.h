/* Shared by all kernels: the levels of a uniform grid, and when work is divided among threads. */
#include <math.h>
#include <stdlib.h>

#define LANES 16
#define FEW 32768 /* numbers below which threads cost more than they save */

static inline float clipped(float value, float low, float high) { return value < low ? low : (value > high ? high : value); }

/* The nearest integer of a grid. */
static inline float level(float ratio, float low, float high) { return clipped(rintf(ratio), low, high); }

/* The nearest level of a grid that has zero, or of one whose levels lie halfway between integers. */
static inline float level_of(float ratio, float low, float high, int zero) {
  return zero ? level(ratio, low, high) : clipped(floorf(ratio) + 0.5f, low, high);
}

static inline int has_zero(float low) { return low == rintf(low); }

static inline float passes(float value, float bottom, float top, float g) { return value <= bottom || value >= top ? 0.f : g; }

static inline int many(long count, int threads) { return threads > 1 && count > FEW; }

/* The scale of a stored step; NaN of a NaN, so that the diagnostics of training find it. */
static inline float scale_of(float step, float smallest) {
  float size = fabsf(step);
  return size < smallest ? smallest : size;
}

/* The gradient of a step whose scale s has the gradient total, straight through the function from step to s. */
static inline float to_step_of(double total, float factor, float s, float step, float smallest) {
  return (float)(total * factor * (s / copysignf(scale_of(step, smallest), step)));
}
