// The CUDA backend: the four stages of discfused/backends/contract.py, which says what every tensor
// means. N samples, D features, C classes, S slots. All tensors are on the device of the features.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace discfused::cuda {

// -> slot [N], row_weight [N], total [], slot_class [S], share [S]; for histogram: rows [N + 2 S],
// sums [parts, 2, D]. `bad` [1] int32 in pinned host memory: how many labels are out of range.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
members(
    const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& sample_weight, int64_t num_classes, int64_t slots,
    int64_t ignore_index, const at::Tensor& features, int64_t activation, const at::Tensor& bad);

// -> mean [D] (none unless centred), table [S, D], magnitude [D], slope [S, D] (none unless asked)
std::tuple<std::optional<at::Tensor>, at::Tensor, at::Tensor, std::optional<at::Tensor>> histogram(
    const at::Tensor& features, const at::Tensor& row_weight, const at::Tensor& total,
    int64_t slots, const at::Tensor& rows, const at::Tensor& sums, int64_t activation, bool center,
    const std::optional<at::Tensor>& mean, bool slope);

// -> penalty [], gini [], kl [], feature_coef [6, D], slot_coef [S]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> terms(
    const at::Tensor& table, const at::Tensor& magnitude, const std::optional<at::Tensor>& slope,
    const at::Tensor& prior, const std::optional<at::Tensor>& absent, bool reverse, double eps,
    double gini_weight, double kl_weight);

// -> d loss / d features [N, D], contiguous. Without feature_coef, `table` is its own gradient;
// without slot, it has a line for every row. `told`: rows 4 and 5 of feature_coef are there.
at::Tensor gradient(
    const at::Tensor& features, const std::optional<at::Tensor>& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& mean, const at::Tensor& table,
    int64_t activation, const std::optional<at::Tensor>& feature_coef,
    const std::optional<at::Tensor>& slot_coef, const std::optional<at::Tensor>& grad_gini,
    const std::optional<at::Tensor>& grad_kl, double gini_weight, double kl_weight, bool told);

// a @ b, in the precision of a and b whatever autocast and the TF32 switches say
at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);

}  // namespace discfused::cuda
