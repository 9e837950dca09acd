// Launches a kernel on a stream. Included by .cu files alone.
//
// The tests compile the same .cu files with the host's compiler and tests/backends/cuda_on_host.h,
// which has CUDA's words, and runs the threads of a block in turn from barrier to barrier.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "cuda/kernels.h"

// The launcher of a kernel, for every dtype of features
#define DISCFUSED_INSTANTIATE(launcher, Params)             \
  template void launcher(const Params<float>&, Stream);     \
  template void launcher(const Params<double>&, Stream);    \
  template void launcher(const Params<c10::Half>&, Stream); \
  template void launcher(const Params<c10::BFloat16>&, Stream);

namespace discfused::cuda {

template <typename Params>
void launch(void (*kernel)(Params), int64_t blocks, const Params& params, Stream stream) {
  TORCH_CHECK(blocks <= INT32_MAX, "discfused: too many blocks in one launch (", blocks, ")");
  if (blocks == 0) return;
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(params);
  const cudaError_t error = cudaGetLastError();
  TORCH_CHECK(error == cudaSuccess, "discfused: a launch failed: ", cudaGetErrorString(error));
#else
  (void)stream;
  on_host::run(blocks, kThreads, [&] { kernel(params); });
#endif
}

}  // namespace discfused::cuda
