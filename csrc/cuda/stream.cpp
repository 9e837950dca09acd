#include <c10/cuda/CUDAStream.h>

#include "cuda/stages.h"

namespace discfused::cuda {

Stream current_stream(int device) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
}

}  // namespace discfused::cuda
