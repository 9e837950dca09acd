// Chooses the kernels for the processor at hand, as PyTorch does (ATEN_CPU_CAPABILITY included).

#include <ATen/Version.h>

#include <string>

#include "cpu/kernels.h"

#ifdef DISCFUSED_X86
#include <xmmintrin.h>
#endif

namespace discfused::cpu {

#define DISCFUSED_KERNELS_OF(isa)              \
  namespace isa {                              \
  extern const Kernels<float> kernels_float;   \
  extern const Kernels<double> kernels_double; \
  }
DISCFUSED_KERNELS_OF(baseline)
#ifdef DISCFUSED_X86
DISCFUSED_KERNELS_OF(avx2)
DISCFUSED_KERNELS_OF(avx512)
#endif
#undef DISCFUSED_KERNELS_OF

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa detect() {
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return Isa::kAvx512;
  if (capability == "AVX2") return Isa::kAvx2;
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa detected = detect();
  return detected;
}

}  // namespace

template <>
const Kernels<float>& kernels() {
#ifdef DISCFUSED_X86
  if (isa() == Isa::kAvx512) return avx512::kernels_float;
  if (isa() == Isa::kAvx2) return avx2::kernels_float;
#endif
  return baseline::kernels_float;
}

template <>
const Kernels<double>& kernels() {
#ifdef DISCFUSED_X86
  if (isa() == Isa::kAvx512) return avx512::kernels_double;
  if (isa() == Isa::kAvx2) return avx2::kernels_double;
#endif
  return baseline::kernels_double;
}

void fence_streams() {
#ifdef DISCFUSED_X86
  _mm_sfence();
#endif
}

}  // namespace discfused::cpu
