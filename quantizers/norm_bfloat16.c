#define BFLOAT16
#include "norm.c"
