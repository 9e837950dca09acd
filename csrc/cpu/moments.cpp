#include "cpu/moments.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace discfused::cpu {

namespace {

// Sums of a stripe: neighbouring blocks, so that long pieces of each row are read in order, which
// memory likes best.
template <typename Acc>
struct alignas(kAlignment) StripeSums {
  Acc sum[kStripeBlocks * kBlockColumns<Acc>] = {};
  Acc magnitude[kStripeBlocks * kBlockColumns<Acc>] = {};

  void write(int64_t columns, Acc total, Acc* mean, Acc* magnitudes) const {
    for (int64_t j = 0; mean && j < columns; ++j) mean[j] = sum[j] / total;
    std::copy(magnitude, magnitude + columns, magnitudes);
  }
};

}  // namespace

template <typename Acc>
void column_moments(
    const Features& x, const RowPlan<Acc>& plan, int activation, Acc total, Acc* mean,
    Acc* magnitude) {
  const auto add = kernels<Acc>().moments[activation];
  const int64_t blocks = block_count<Acc>(x.D);
  const int64_t whole = x.whole_blocks<Acc>();
  const int64_t threads = at::get_num_threads();
  const int64_t width = std::clamp<int64_t>((whole + threads - 1) / threads, 1, kStripeBlocks);
  const int64_t stripes = (whole + width - 1) / width;
  const int64_t cost = std::max<int64_t>(1, plan.rows * width * kBlockColumns<Acc>);
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  at::parallel_for(0, stripes + blocks - whole, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      StripeSums<Acc> sums;
      const int64_t block = task < stripes ? task * width : whole + task - stripes;
      const int64_t last = task < stripes ? std::min(block + width, whole) : block + 1;
      const int64_t column = block * kBlockColumns<Acc>;
      const int64_t columns = std::min(last * kBlockColumns<Acc>, x.D) - column;
      const auto add_chunk = [&](int64_t padded, const RowChunk<Acc>& rows) {
        add[rows.from.type](rows, padded, sums.sum, sums.magnitude);
      };
      if (task < stripes) {
        for_each_chunk(
            plan, x.from_column(column, plan.order),
            [&](const auto&, const RowChunk<Acc>& rows, int64_t) { add_chunk(columns, rows); });
      } else {
        BlockRows<Acc> rows_of_block(x, plan);
        rows_of_block.start(block, nullptr);
        rows_of_block.for_each_chunk(Look::kPacked, [&](const auto&, const RowChunk<Acc>& rows) {
          add_chunk(rows_of_block.span().width, rows);
        });
      }
      sums.write(columns, total, mean ? mean + column : nullptr, magnitude + column);
    }
  });
}

template void column_moments(const Features&, const RowPlan<float>&, int, float, float*, float*);
template void column_moments(
    const Features&, const RowPlan<double>&, int, double, double*, double*);

}  // namespace discfused::cpu
