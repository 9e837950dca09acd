// How stages split their work. From shapes alone: sums have the same order on every GPU. These
// numbers, and those of stages_impl.h, were chosen by reasoning on 2026-11-22 and are to be
// measured.

#include "cuda/stages.h"

#include <algorithm>

namespace discfused::cuda {

namespace {

// Enough blocks for 2 on each multiprocessor of a large GPU.
constexpr int64_t kWantedBlocks = 264;

int64_t column_blocks(Dtype dtype, int64_t D) {
  return divide_up(D, dtype == Dtype::kDouble ? 16 : dtype == Dtype::kFloat ? 32 : 64);
}

}  // namespace

int64_t moment_parts(Dtype dtype, int64_t N, int64_t D) {
  const int64_t wanted = divide_up(kWantedBlocks, column_blocks(dtype, D));
  return std::max<int64_t>(1, std::min({wanted, N / 128, int64_t{64}}));
}

int64_t table_parts(Dtype dtype, int64_t N, int64_t D, int64_t S) {
  // A second launch is worth it only for slots of many rows, which 32 groups of threads share.
  const int64_t wanted = divide_up(kWantedBlocks, column_blocks(dtype, D) * S);
  return std::max<int64_t>(1, std::min(wanted, N / S / 2048));
}

int64_t terms_parts(int64_t D) { return divide_up(D, 32); }

bool counts_rows(int64_t N, int64_t S, int64_t C) {
  if (S == C) return N <= 32768 && N * S <= int64_t{1} << 27;
  return N <= 4096;
}

}  // namespace discfused::cuda
