// Features in memory, and how work on them is split: into ranges of slots and tiles of columns.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/rows.h"

namespace discfused::cpu {

// Scratch memory.
template <typename Acc>
using Numbers = std::unique_ptr<Acc[]>;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Below so many numbers, a second thread costs more than it saves.
constexpr int64_t kSerialNumbers = 32768;

inline int64_t grain(int64_t numbers, int64_t tasks) {
  return numbers < kSerialNumbers ? tasks : 1;
}

struct Features {
  at::Tensor tensor;
  int64_t N, D;
  FeatureType type;

  explicit Features(const at::Tensor& features) : tensor(features) {
    TORCH_CHECK_VALUE(
        features.dim() == 2, "features have shape ", features.sizes(), ", expected [N, D]");
    N = features.size(0);
    D = features.size(1);
    if (D > 1 && features.stride(1) != 1) tensor = features.contiguous();
    const at::ScalarType dtype = features.scalar_type();
    TORCH_CHECK_TYPE(
        dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
        "features have dtype ", dtype, ", expected float16, bfloat16, float32 or float64");
    type = dtype == at::kHalf ? kHalf : dtype == at::kBFloat16 ? kBFloat16 : kAccumulated;
  }

  at::TensorOptions accumulated() const {
    return tensor.options().dtype(in_double() ? at::kDouble : at::kFloat);
  }
  bool in_double() const { return tensor.scalar_type() == at::kDouble; }

  Columns<const void*> columns(int64_t first, int64_t count) const {
    const auto* data = static_cast<const char*>(tensor.const_data_ptr());
    return {data + first * tensor.element_size(), tensor.stride(0), count};
  }
};

// Ranges of slots with about as many rows each. How many follows from the rows alone, so that sums
// over ranges have the same order for every number of threads.
template <typename Acc>
std::vector<int64_t> slot_ranges(const Rows<Acc>& rows) {
  constexpr int64_t kRangeRows = 64, kMostRanges = 32;
  const int64_t count = rows.count();
  const int64_t ranges = std::clamp<int64_t>(count / kRangeRows, 1, kMostRanges);
  std::vector<int64_t> first;
  for (int64_t r = 0; r < ranges; ++r) {
    const int64_t* from =
        std::lower_bound(rows.offsets, rows.offsets + rows.slots, count * r / ranges);
    first.push_back(from - rows.offsets);
  }
  first.push_back(rows.slots);
  return first;
}

struct Tile {
  int64_t range;
  int64_t first_slot, last_slot;
  int64_t first_column, columns;
};

// body(tile) on several threads. A row of a tile fits the first-level cache; columns are split
// further only where threads would have no work, and only between lines.
template <typename Body>
void for_each_tile(const std::vector<int64_t>& ranges, int64_t N, int64_t D, const Body& body) {
  constexpr int64_t kFewestColumns = 256;
  constexpr int64_t kLineColumns = kLine / 2;  // of the smallest type
  const int64_t count = static_cast<int64_t>(ranges.size()) - 1;
  const int64_t wanted = divide_up(2 * at::get_num_threads(), count);
  const int64_t width =
      std::clamp(divide_up(D, wanted * kLineColumns) * kLineColumns, kFewestColumns, kMostColumns);
  const int64_t across = divide_up(D, width), tasks = count * across;
  at::parallel_for(0, tasks, grain(N * D, tasks), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t range = task / across, column = task % across * width;
      body(Tile{range, ranges[range], ranges[range + 1], column, std::min(width, D - column)});
    }
  });
}

inline int checked_activation(int64_t activation) {
  TORCH_CHECK_VALUE(
      activation >= 0 && activation < kActivations, "activation is ", activation,
      ", expected 0 to ", kActivations - 1);
  return static_cast<int>(activation);
}

}  // namespace discfused::cpu
