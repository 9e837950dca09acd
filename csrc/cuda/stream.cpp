#include <c10/cuda/CUDAStream.h>

#include "cuda/tensors.h"

namespace discfused::cuda {

Stream current_stream(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}

}  // namespace discfused::cuda
