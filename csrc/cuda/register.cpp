// The operators for CUDA tensors, as the dispatcher finds them; and the stream they run on.

#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/ops.h"

namespace discfused::cuda {

Stream current_stream(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}

TORCH_LIBRARY_FRAGMENT(discfused, library) { library.def(kRowsFlaggedSchema); }

TORCH_LIBRARY_IMPL(discfused, CUDA, library) { implement(library); }

}  // namespace discfused::cuda
