// Which rows count, in which order they are packed, and which sums they are part of.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/kernels.h"

namespace discfused::cpu {

template <typename Acc>
struct RowPlan {
  struct Chunk {
    int64_t rows;
    std::vector<Run> runs;           // by slot
    std::vector<uint8_t> entry_row;  // of soft labels
    std::vector<Acc> entry_weight;

    Runs<Acc> view() const {
      return {runs.data(), runs.data() + runs.size(), entry_row.data(), entry_weight.data()};
    }
  };

  std::vector<int64_t> order;     // [N] rows as they are packed, then those that do not count
  int64_t rows = 0;               // how many count
  std::vector<Acc> weight;        // [rows] n_i
  std::vector<Chunk> chunks;      // of kChunkRows rows, the last one of fewer
  std::vector<int32_t> slots;     // those with a run, which counts them in this order
  bool one_entry_per_row = true;  // hard labels
};

// Hard labels: rows in the order of their slots, so that a slot is added up in registers.
// Soft labels: rows as they come; the nonzero entries of each chunk by slot.
template <typename Acc>
RowPlan<Acc> make_plan(
    const at::Tensor& slot, const at::Tensor& row_weight, const std::optional<at::Tensor>& soft,
    int64_t N, int64_t S);

}  // namespace discfused::cpu
