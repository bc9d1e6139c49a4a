/* What all kernels share: the levels of a uniform grid, and how work is divided. */
#include <math.h>
#include <stdlib.h>

#define LANES 16
#define FEW 32768 /* numbers below which threads cost more than they bring */

static inline float level(float ratio, float low, float high) {
  float code = rintf(ratio);
  return code < low ? low : (code > high ? high : code);
}

static inline float passes(float value, float bottom, float top, float g) { return value <= bottom || value >= top ? 0.f : g; }

static inline int many(long count, int threads) { return threads > 1 && count > FEW; }

/* The scale a stored step stands for; of a step that is no number, none, so that the guard of training sees it. */
static inline float scale_of(float step, float smallest) {
  float size = fabsf(step);
  return size < smallest ? smallest : size;
}

/* The gradient of a step whose scale s has the gradient total, straight through whatever made the one of the other. */
static inline float to_step_of(double total, float factor, float s, float step, float smallest) {
  return (float)(total * factor * (s / copysignf(scale_of(step, smallest), step)));
}
