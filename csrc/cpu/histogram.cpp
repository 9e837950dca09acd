// features -> mean, table, magnitude

#include <ATen/ops/empty.h>

#include <cstring>

#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/ops.h"

namespace discfused::cpu {

namespace {

template <typename Acc>
struct Output {
  Acc* mean;  // null unless it is asked for
  Acc* table;
  Acc* magnitude;
};

template <typename Acc>
void histogram_blocks(
    const Features& features, const RowPlan<Acc>& plan, Acc total, int activation,
    const Acc* given_mean, const Output<Acc>& output) {
  using Chunk = typename RowPlan<Acc>::Chunk;
  const Kernels<Acc>& kernel = kernels<Acc>();
  const int64_t D = features.D;
  parallel_blocks<Acc>(D, features.N, [&](int64_t begin, int64_t end) {
    const Range columns = block_range<Acc>(begin, end, D);
    for (const int32_t slot : plan.unused_slots) {
      std::memset(output.table + slot * D + columns.first, 0, columns.count * sizeof(Acc));
    }
    PackedRows<Acc> rows(features, plan);
    ColumnValues<Acc> mean, sum, magnitude;
    for (int64_t block = begin; block < end; ++block) {
      rows.start(block);
      const Span span = rows.span();
      const int64_t column = block * kBlockColumns<Acc>;
      const auto add_moments = [&](const Chunk& chunk, int64_t first, Acc* packed) {
        const Acc* weight = plan.weight.data() + first;
        kernel.moments[activation](packed, weight, chunk.rows, span, sum, magnitude);
      };
      const auto add_to_table = [&](const Chunk& chunk, int64_t, Acc* packed) {
        const Runs<Acc> runs = chunk.view();
        const Table<Acc> table{output.table + column, D};
        if (plan.one_entry_per_row) {
          kernel.gather[activation](packed, mean, runs, span, table);
        } else {
          kernel.activate[activation](packed, mean, chunk.rows, span);
          kernel.gather_activated(packed, mean, runs, span, table);
        }
      };

      sum.fill(0);
      magnitude.fill(0);
      if (output.mean) {
        rows.for_each_chunk(add_moments);
        for (int64_t j = 0; j < span.width; ++j) mean[j] = sum[j] / total;
        mean.write(output.mean + column, span);
        rows.for_each_chunk(add_to_table);
      } else {
        given_mean ? mean.read(given_mean + column, span) : mean.fill(0);
        rows.for_each_chunk([&](const Chunk& chunk, int64_t first, Acc* packed) {
          add_moments(chunk, first, packed);
          add_to_table(chunk, first, packed);
        });
      }
      magnitude.write(output.magnitude + column, span);
    }
  });
}

template <typename Acc>
auto histogram_as(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, int64_t S, int activation,
    bool center, const std::optional<at::Tensor>& given_mean, at::ScalarType acc) {
  const Features x(features);
  const RowPlan<Acc> plan = make_plan<Acc>(slot, row_weight, soft, x.N, S);
  const auto options = features.options().dtype(acc);

  std::optional<at::Tensor> mean;
  if (given_mean) {
    check_shape(*given_mean, {x.D}, "mean");
    mean = given_mean->contiguous();
  } else if (center) {
    mean = at::empty({x.D}, options);
  }
  const bool computed = center && !given_mean;
  at::Tensor table = at::empty({S, x.D}, options);
  at::Tensor magnitude = at::empty({x.D}, options);
  histogram_blocks<Acc>(
      x, plan, nonzero(scalar<Acc>(total, "total")), activation,
      given_mean ? mean->const_data_ptr<Acc>() : nullptr,
      {computed ? mean->mutable_data_ptr<Acc>() : nullptr, table.mutable_data_ptr<Acc>(),
       magnitude.mutable_data_ptr<Acc>()});
  return std::make_tuple(mean, table, magnitude);
}

}  // namespace

std::tuple<std::optional<at::Tensor>, at::Tensor, at::Tensor> histogram(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, int64_t slots,
    int64_t activation, bool center, const std::optional<at::Tensor>& mean) {
  const bool in_double = features.scalar_type() == at::kDouble;
  const auto run = in_double ? histogram_as<double> : histogram_as<float>;
  return run(
      features, slot, row_weight, total, soft, slots, checked_activation(activation), center, mean,
      in_double ? at::kDouble : at::kFloat);
}

}  // namespace discfused::cpu
