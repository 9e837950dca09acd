// features -> mean, table

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "cpu/block_histogram.h"
#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/moments.h"
#include "cpu/ops.h"

namespace discfused::cpu {

namespace {

template <typename Acc>
auto histogram_as(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, int64_t S, int activation,
    bool centered, at::ScalarType acc) {
  const Features x(features);
  const RowPlan<Acc> plan = make_plan<Acc>(slot, row_weight, soft, x.N, S);
  const auto options = features.options().dtype(acc);
  std::optional<at::Tensor> mean;
  if (centered) mean = at::empty({x.D}, options);
  Acc* means = centered ? mean->mutable_data_ptr<Acc>() : nullptr;
  const Acc whole = nonzero(scalar<Acc>(total, "total"));
  // Zeros for slots without rows.
  at::Tensor table = at::zeros({S, x.D}, options);
  Acc* out = table.mutable_data_ptr<Acc>();
  std::optional<Moments<Acc>> moments;  // nothing is asked of them but the mean
  if (centered) moments.emplace(x, plan, activation, whole, means);
  parallel_blocks<Acc>(x.D, x.N, [&](const auto& for_each_block) {
    BlockHistogram<Acc> histogram(x, plan, activation);
    ColumnValues<Acc> mean_of_block, magnitude;
    mean_of_block.fill(0);
    for_each_block([&](int64_t block) {
      histogram.start(block);
      const int64_t column = block * kBlockColumns<Acc>;
      if (moments) moments->of_block(block, histogram.rows(), mean_of_block, magnitude);
      histogram.fill(mean_of_block, nullptr, Look::kInPlace);
      const Table<Acc> from = histogram.table();
      for (size_t k = 0; k < plan.slots.size(); ++k) {
        const Acc* row = from.data + k * from.stride;
        std::copy(row, row + histogram.span().columns, out + plan.slots[k] * x.D + column);
      }
    });
  });
  return std::make_tuple(mean, table);
}

}  // namespace

std::tuple<std::optional<at::Tensor>, at::Tensor> histogram(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, int64_t slots,
    int64_t activation, bool center) {
  const bool in_double = features.scalar_type() == at::kDouble;
  const auto run = in_double ? histogram_as<double> : histogram_as<float>;
  return run(
      features, slot, row_weight, total, soft, slots, checked_activation(activation), center,
      in_double ? at::kDouble : at::kFloat);
}

}  // namespace discfused::cpu
