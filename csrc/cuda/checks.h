// What a direct caller of the bindings could break, and where kernels run. The Python side has
// checked user input before.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <limits>
#include <optional>

#include "cuda/stages.h"

namespace discfused::cuda {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", expected ", shape);
}

inline const void* checked(
    const at::Tensor& tensor, const at::Tensor& like, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == dtype, name, " has dtype ", tensor.scalar_type(), ", expected ",
      dtype);
  TORCH_CHECK_VALUE(
      tensor.device() == like.device(), name, " is on ", tensor.device(), ", expected ",
      like.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " is not contiguous");
  return tensor.const_data_ptr();
}

inline Dtype dtype_of(const at::Tensor& features) {
  switch (features.scalar_type()) {
    case at::kHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kFloat:
      return Dtype::kFloat;
    case at::kDouble:
      return Dtype::kDouble;
    default:
      TORCH_CHECK_TYPE(
          false, "features have dtype ", features.scalar_type(),
          ", expected float16, bfloat16, float32 or float64");
  }
}

inline at::ScalarType accumulator(const at::Tensor& features) {
  return features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline FeaturesCall features_call(const at::Tensor& x, int64_t activation) {
  TORCH_CHECK_VALUE(x.dim() == 2, "features have shape ", x.sizes(), ", expected [N, D]");
  TORCH_CHECK_VALUE(
      activation >= 0 && activation < 5, "activation is ", activation, ", expected 0 to 4");
  TORCH_CHECK_VALUE(
      x.size(0) <= std::numeric_limits<int32_t>::max(), "features have ", x.size(0),
      " rows, expected at most 2^31 - 1");
  const int64_t size = x.element_size(), D = x.size(1);
  const bool vector = x.stride(1) == 1 && x.stride(0) * size % 16 == 0 && D * size % 16 == 0 &&
                      aligned(x.const_data_ptr());
  return {dtype_of(x), vector,      x.const_data_ptr(), x.size(0),
          D,           x.stride(0), x.stride(1),        static_cast<int>(activation)};
}

struct Place {
  explicit Place(const at::Tensor& tensor)
      : guard(tensor.device()), stream(current_stream(tensor.device().index())) {}
  c10::DeviceGuard guard;
  Stream stream;
};

}  // namespace discfused::cuda
