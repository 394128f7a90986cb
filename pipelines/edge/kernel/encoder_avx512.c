// The same encoder with sixteen lanes, for processors with AVX-512 and VNNI.
#define LANES 16
#include "encoder.c"
