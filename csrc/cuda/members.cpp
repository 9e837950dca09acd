// labels and features -> slots, moments

#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "cuda/checks.h"
#include "cuda/ops.h"

namespace discfused::cuda {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
members(
    const at::Tensor& target, const OptionalTensor& weight, const OptionalTensor& sample_weight,
    int64_t C, int64_t S, int64_t ignore_index, const at::Tensor& features, int64_t activation,
    const at::Tensor& bad) {
  const FeaturesCall x = features_call(features, activation);
  const int64_t N = x.N;
  check_shape(target, {N}, "target");
  constexpr int64_t most = std::numeric_limits<int32_t>::max() - 1;
  TORCH_CHECK_VALUE(C > 0 && C <= most, "num_classes is ", C, ", expected 1 to 2^31 - 2");
  TORCH_CHECK_VALUE(
      S == C || S == N, "slots is ", S, ", expected ", C, " (the number of classes) or ", N,
      " (of rows)");
  const at::ScalarType acc = accumulator(features);
  const bool double_precision = acc == at::kDouble;
  const Place place(features);

  const at::Tensor labels = target.contiguous();
  at::Tensor class_weight, row_factor;
  LabelsCall in{};
  in.target = static_cast<const int64_t*>(checked(labels, features, at::kLong, "target"));
  if (weight) {
    check_shape(*weight, {C}, "weight");
    class_weight = weight->contiguous();
    in.weight = checked(class_weight, features, acc, "weight");
  }
  if (sample_weight) {
    check_shape(*sample_weight, {N}, "sample_weight");
    row_factor = sample_weight->contiguous();
    in.sample_weight = checked(row_factor, features, acc, "sample_weight");
  }
  in.N = N;
  in.C = C;
  in.S = S;
  in.ignore_index = ignore_index;

  const bool counts = counts_rows(N, S, C);
  const auto integers = features.options().dtype(at::kInt), floats = features.options().dtype(acc);
  const auto fresh = [&](at::IntArrayRef shape, const at::TensorOptions& options) {
    return counts && N > 0 ? at::empty(shape, options) : at::zeros(shape, options);
  };
  at::Tensor slot = fresh({N}, integers), row_weight = fresh({N}, floats);
  at::Tensor total = fresh({}, floats), share = fresh({S}, floats);
  at::Tensor slot_class = fresh({S}, features.options().dtype(at::kLong));
  at::Tensor rows = fresh({N + 2 * S}, integers);
  at::Tensor sums = at::empty({moment_parts(x.dtype, N, x.D), 2, x.D}, floats);
  int32_t* order = rows.mutable_data_ptr<int32_t>();
  const auto result = [&] {
    return std::make_tuple(slot, row_weight, total, slot_class, share, rows, sums);
  };
  if (N == 0) return result();

  SlotsCall out{
      slot.mutable_data_ptr<int32_t>(),
      row_weight.mutable_data_ptr(),
      order,
      order + N,
      share.mutable_data_ptr(),
      slot_class.mutable_data_ptr<int64_t>(),
      total.mutable_data_ptr(),
      bad.mutable_data_ptr<int32_t>()};
  MomentsCall moments{x, nullptr, sums.mutable_data_ptr()};
  if (counts) {
    begin(&in, &out, &moments, double_precision, place.stream);
    return result();
  }
  at::Tensor key = at::empty({N}, integers);
  at::Tensor wrong = at::zeros({1}, features.options().dtype(at::kLong));
  SortedCall sorted{
      key.mutable_data_ptr<int32_t>(), nullptr, nullptr, wrong.mutable_data_ptr<int64_t>()};
  sort_begin(in, out, sorted, double_precision, place.stream);
  const auto [sorted_key, sorted_row] = at::sort(key, /*stable=*/true, 0, /*descending=*/false);
  total = row_weight.sum();
  out.total = total.mutable_data_ptr();
  sorted.sorted_key = sorted_key.const_data_ptr<int32_t>();
  sorted.sorted_row = sorted_row.const_data_ptr<int64_t>();
  sort_end(in, out, sorted, double_precision, place.stream);
  moments.row_weight = row_weight.const_data_ptr();
  begin(nullptr, nullptr, &moments, double_precision, place.stream);
  return result();
}

}  // namespace discfused::cuda
