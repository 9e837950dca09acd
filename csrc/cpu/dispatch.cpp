// Chooses the kernels for the processor at hand, as PyTorch does (ATEN_CPU_CAPABILITY included).

#include <ATen/Version.h>

#include <string>

#include "cpu/kernels.h"

#ifdef DISCFUSED_X86
#include <xmmintrin.h>
#endif

namespace discfused::cpu {

namespace baseline {
extern const KernelSet kernel_set;
}
namespace avx2 {
extern const KernelSet kernel_set;
}
namespace avx512 {
extern const KernelSet kernel_set;
}

namespace {

const KernelSet& detect() {
#ifdef DISCFUSED_X86
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512::kernel_set;
  if (capability == "AVX2") return avx2::kernel_set;
#endif
  return baseline::kernel_set;
}

}  // namespace

template <typename Acc>
const Kernels<Acc>& kernels() {
  static const KernelSet& detected = detect();
  return std::get<Kernels<Acc>>(detected);
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();

void fence_streams() {
#ifdef DISCFUSED_X86
  _mm_sfence();
#endif
}

}  // namespace discfused::cpu
