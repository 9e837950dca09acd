// The operators of discfused/backends/contract.py on CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/kernels.h"

namespace discfused::cuda {

using OptionalTensor = std::optional<at::Tensor>;

// `rows` of hard labels. `bad` [1], int32, in memory that the device can write, gets the number of
// labels out of range, if there are any; their rows do not count.
std::vector<at::Tensor> rows_flagged(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype, at::Tensor bad);

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> terms(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes,
    const OptionalTensor& prior, int64_t activation, int64_t impurity, double gini_weight,
    double kl_weight);

at::Tensor gradient(
    const at::Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight);

at::Tensor histogram(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes, int64_t activation);

at::Tensor histogram_gradient(
    const at::Tensor& grad, const at::Tensor& features, at::TensorList rows, int64_t activation);

Stream current_stream(const at::Tensor& tensor);

// Schema of the operator that the Python side of `rows` calls.
constexpr const char* kRowsFlaggedSchema =
    "cuda_rows_flagged(Tensor target, Tensor? sample_weight, int num_classes, int ignore_index, "
    "ScalarType dtype, Tensor(a!) bad) -> Tensor[]";

template <typename Library>
void implement(Library& library) {
  library.impl("cuda_rows_flagged", rows_flagged);
  library.impl("cuda_terms", terms);
  library.impl("cuda_gradient", gradient);
  library.impl("cuda_histogram", histogram);
  library.impl("cuda_histogram_gradient", histogram_gradient);
}

}  // namespace discfused::cuda
