// Kernels for the instruction set that the whole library is compiled for.

#include "cpu/kernels.h"

#ifdef DISCFUSED_X86
#include <immintrin.h>
#endif

#define DISCFUSED_ISA baseline
#define DISCFUSED_VECTOR_BYTES 16
#include "cpu/kernels_impl.h"
