// What a direct caller of the bindings could break. The Python side has checked user input before,
// all but the labels, which members() checks.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "cpu/kernels.h"

namespace discfused::cpu {

// const_data_ptr<T>() checks the element type.
inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", expected ", shape);
}

template <typename Acc>
Acc scalar(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.numel() == 1, name, " has shape ", tensor.sizes(), ", expected a single number");
  return *tensor.const_data_ptr<Acc>();
}

// A total to divide by. When it is 0, nothing counts and what is divided is 0 as well.
template <typename Acc>
Acc nonzero(Acc total) {
  return total == 0 ? Acc(1) : total;
}

inline int checked_activation(int64_t activation) {
  TORCH_CHECK_VALUE(
      activation >= 0 && activation < kActivations, "activation is ", activation,
      ", expected 0 to ", kActivations - 1);
  return static_cast<int>(activation);
}

}  // namespace discfused::cpu
