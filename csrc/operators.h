// The types of the operators' kernels. discfused/_ops.py has the schemas, and
// discfused/backends/contract.py says what they compute.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

namespace discfused {

using OptionalTensor = std::optional<at::Tensor>;

namespace operators {

// Int: int64_t for the kernels of a device, c10::SymInt for the autograd formula.

template <typename Int>
using Terms = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>(
    const at::Tensor& features, at::TensorList rows, Int num_classes, const OptionalTensor& prior,
    int64_t activation, int64_t impurity, double gini_weight, double kl_weight);

using Gradient = at::Tensor(
    const at::Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight);

template <typename Int>
using Histogram = at::Tensor(
    const at::Tensor& features, at::TensorList rows, Int num_classes, int64_t activation);

using HistogramGradient = at::Tensor(
    const at::Tensor& grad, const at::Tensor& features, at::TensorList rows, int64_t activation);

}  // namespace operators

// The kernels check what a direct caller of the operators could break. The Python side has checked
// user input before, all but the labels. (const_data_ptr<T>() checks the element type.)
inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", expected ", shape);
}

}  // namespace discfused
