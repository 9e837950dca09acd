// Kernels for x86 processors with AVX-512, as at::get_cpu_capability() understands it.

#include "cpu/kernels.h"

#ifdef DISCFUSED_X86

#include <immintrin.h>

// After the library headers: what they define inline may be shared with code for other processors.
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define DISCFUSED_ISA avx512
#define DISCFUSED_VECTOR_BYTES 64
#include "cpu/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // DISCFUSED_X86
