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
  std::vector<int64_t> order;      // [N] rows as they are packed, then those that do not count
  int64_t rows = 0;                // how many count
  std::vector<Acc> weight;         // [rows] n_i
  std::vector<Run> runs;           // chunk by chunk
  std::vector<int64_t> first_run;  // [chunks + 1]
  std::vector<uint8_t> entry_row;
  std::vector<Acc> entry_weight;
  std::vector<int32_t> unused_slots;  // those without a run

  bool one_entry_per_row = true;      // hard labels

  int64_t chunks() const { return static_cast<int64_t>(first_run.size()) - 1; }
  int64_t chunk_rows(int64_t chunk) const {
    const int64_t left = rows - chunk * kChunkRows;
    return left < kChunkRows ? left : kChunkRows;
  }
  const Acc* chunk_weight(int64_t chunk) const { return weight.data() + chunk * kChunkRows; }
  Runs<Acc> chunk_runs(int64_t chunk) const {
    return {
        runs.data() + first_run[chunk], runs.data() + first_run[chunk + 1], entry_row.data(),
        entry_weight.data()};
  }
};

// Hard labels: rows in the order of their slots, so that a slot is added up in registers.
// Soft labels: rows as they come; each chunk has the nonzero entries of its rows, slot by slot.
template <typename Acc>
RowPlan<Acc> make_plan(
    const at::Tensor& slot, const at::Tensor& row_weight, const std::optional<at::Tensor>& soft,
    int64_t N, int64_t S);

}  // namespace discfused::cpu
