// Launches kernels on a stream. Included by every .cu file, and by nothing else.
#pragma once

#include <c10/cuda/CUDAException.h>

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
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace discfused::cuda
