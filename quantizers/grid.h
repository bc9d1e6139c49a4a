/* Shared by all kernels: the levels of a uniform grid, and when work is divided among threads. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Every kernel is compiled for tensors of float32, and with BFLOAT16 for those of bfloat16; it computes in float32. */
#ifdef BFLOAT16
typedef uint16_t real;
#define KERNEL(name) name##_bfloat16
static inline float get(real stored) {
  uint32_t bits = (uint32_t)stored << 16;
  float value;
  return memcpy(&value, &bits, sizeof value), value;
}
static inline real put(float value) { /* to the nearest, ties to even */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return value == value ? (real)nearest : (real)0x7fc0;
}
#else
typedef float real;
#define KERNEL(name) name
static inline float get(real stored) { return stored; }
static inline real put(float value) { return value; }
#endif

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
