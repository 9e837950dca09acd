// The CPU backend: the four stages of discfused/backends/contract.py, which says what every tensor
// means. N samples, D features, C classes, S slots.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace discfused::cpu {

// -> slot [N], row_weight [N], total [], slot_class [S], share [S]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> members(
    const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& sample_weight, int64_t num_classes, int64_t slots,
    int64_t ignore_index, bool double_precision);

// -> mean [D] (none unless centred), table [S, D]
std::tuple<std::optional<at::Tensor>, at::Tensor> histogram(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, int64_t slots,
    int64_t activation, bool center);

// -> penalty [], gini [], kl [], mean [D] (none unless centred), feature_coef [3, D], slot_coef
// [S], saved (none, or a vector, see saved_blocks.h; `save` is for hard labels and relu)
std::tuple<
    at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, at::Tensor, at::Tensor,
    std::optional<at::Tensor>>
terms(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, const at::Tensor& prior,
    const std::optional<at::Tensor>& absent, int64_t activation, bool center, bool reverse,
    double eps, double gini_weight, double kl_weight, bool save);

// -> d loss / d features [N, D], contiguous: of a loss whose gradient with respect to the table is
// grad_table [S, D], or else follows from feature_coef and the rest, with what terms saved.
at::Tensor gradient(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft,
    const std::optional<at::Tensor>& mean, int64_t activation,
    const std::optional<at::Tensor>& grad_table, const std::optional<at::Tensor>& feature_coef,
    const std::optional<at::Tensor>& slot_coef, const std::optional<at::Tensor>& grad_gini,
    const std::optional<at::Tensor>& grad_kl, double gini_weight, double kl_weight,
    const std::optional<at::Tensor>& saved);

}  // namespace discfused::cpu
