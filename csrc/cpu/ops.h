// The operators of discfused/backends/contract.py on CPU tensors; rows.h has the first one.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace discfused::cpu {

using OptionalTensor = std::optional<at::Tensor>;

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

}  // namespace discfused::cpu
