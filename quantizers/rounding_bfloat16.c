#define BFLOAT16
#include "rounding.c"
