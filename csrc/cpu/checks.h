// What a direct caller of the operators could break. The Python side has checked user input before,
// all but the labels, which `rows` checks.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace discfused::cpu {

// const_data_ptr<T>() checks the element type.
inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", expected ", shape);
}

}  // namespace discfused::cpu
