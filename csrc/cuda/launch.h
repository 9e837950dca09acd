// Launches kernels on a stream. Included by every .cu file, and by nothing else.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#include "cuda/stages_impl.h"

namespace discfused::cuda {

struct Launch {
  Stream stream;

  template <class Kernel>
  void launch(int64_t blocks, const typename Kernel::Arguments& arguments) const {
    TORCH_CHECK(blocks <= INT32_MAX, "discfused: too many blocks in one launch (", blocks, ")");
    entry<Kernel>
        <<<static_cast<unsigned>(blocks), Kernel::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            arguments);
    const cudaError_t error = cudaGetLastError();
    TORCH_CHECK(error == cudaSuccess, "discfused: a launch failed: ", cudaGetErrorString(error));
  }
};

}  // namespace discfused::cuda
