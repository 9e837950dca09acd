#include "cpu/moments.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace discfused::cpu {

template <typename Acc>
Moments<Acc>::Moments(
    const Features& x, const RowPlan<Acc>& plan, int activation, Acc total, Acc* mean)
    : activation_(activation),
      total_(total),
      mean_(mean),
      blocks_read_(fits_cache(plan) ? 0 : x.whole_blocks<Acc>()),
      magnitude_(std::min(blocks_read_ * kBlockColumns<Acc>, x.D)) {
  read_stripes(x, plan);
}

template <typename Acc>
void Moments<Acc>::read_stripes(const Features& x, const RowPlan<Acc>& plan) {
  const int64_t columns = static_cast<int64_t>(magnitude_.size());
  const int64_t threads = at::get_num_threads();
  const int64_t blocks =
      std::clamp<int64_t>((blocks_read_ + threads - 1) / threads, 1, kStripeBlocks);
  const int64_t width = blocks * kBlockColumns<Acc>;
  const int64_t stripes = (columns + width - 1) / width;
  at::parallel_for(0, stripes, 1, [&](int64_t begin, int64_t end) {
    Acc sum[kStripeBlocks * kBlockColumns<Acc>];
    for (int64_t first = begin * width; first < std::min(end * width, columns); first += width) {
      const int64_t here = std::min(width, columns - first);
      std::fill(sum, sum + here, Acc(0));
      const Source source = x.from_column(first, plan.order);
      for_each_chunk(plan, source, [&](const auto&, const RowChunk<Acc>& rows, int64_t) {
        kernels<Acc>().stripe_moments[activation_][x.type](
            rows, here, sum, magnitude_.data() + first);
      });
      for (int64_t j = 0; mean_ && j < here; ++j) mean_[first + j] = sum[j] / total_;
    }
  });
}

template <typename Acc>
void Moments<Acc>::of_block(
    int64_t block, BlockRows<Acc>& rows, ColumnValues<Acc>& mean,
    ColumnValues<Acc>& magnitude) const {
  const Span span = rows.span();
  const int64_t column = block * kBlockColumns<Acc>;
  mean.fill(0);
  if (block < blocks_read_) {
    if (mean_) mean.read(mean_ + column, span);
    magnitude.read(magnitude_.data() + column, span);
    return;
  }
  ColumnValues<Acc> sum;
  sum.fill(0);
  magnitude.fill(0);
  rows.for_each_chunk(Look::kMoments, [&](const auto&, const RowChunk<Acc>& chunk) {
    kernels<Acc>().moments[activation_][chunk.from.type](chunk, span, sum, magnitude);
  });
  if (!mean_) return;
  for (int64_t j = 0; j < span.width; ++j) mean[j] = sum[j] / total_;
  mean.write(mean_ + column, span);
}

template class Moments<float>;
template class Moments<double>;

}  // namespace discfused::cpu
