// What forward leaves for backward of relu and hard labels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/row_plan.h"

namespace discfused::cpu {

// Blocks of the table, each with the signs of its rows: with them backward need not look at the
// features. As many are saved as the whole table, [S, D], would take memory for: all, or most where
// there are few empty slots or many rows for each class.
template <typename Acc>
class SavedBlocks {
 public:
  struct Place {
    Acc* table = nullptr;       // one row as wide as the block for every slot of the plan
    uint64_t* signs = nullptr;  // one for every row of the plan
  };

  SavedBlocks(const RowPlan<Acc>& plan, int64_t S, int64_t D) : blocks_(block_count<Acc>(D)) {
    const int64_t slots = static_cast<int64_t>(plan.slots.size());
    // Where nearly every row is of another class, the table is about as large as the features: to
    // write it gains nothing unless all of it stays in a cache.
    if (slots == 0 || 4 * slots > 3 * plan.rows) return;
    table_bytes_ = slots * kBlockColumns<Acc> * int64_t{sizeof(Acc)};
    const int64_t sign_bytes = plan.rows * int64_t{sizeof(uint64_t)};
    place_bytes_ = table_bytes_ + (sign_bytes + kAlignment - 1) / kAlignment * kAlignment;
    places_ = std::min(blocks_, S * D * int64_t{sizeof(Acc)} / place_bytes_);
  }

  // How much memory they take. It is used once it is there, aligned to kAlignment.
  int64_t elements() const { return places_ * place_bytes_ / int64_t{sizeof(Acc)}; }
  void use(Acc* memory) { memory_ = reinterpret_cast<char*>(memory); }

  // Those that are saved are spread evenly, so that all threads have as many.
  Place at(int64_t block) const {
    const int64_t place = block * places_ / blocks_;
    if (!memory_ || (block + 1) * places_ / blocks_ == place) return {};
    char* start = memory_ + place * place_bytes_;
    return {reinterpret_cast<Acc*>(start), reinterpret_cast<uint64_t*>(start + table_bytes_)};
  }

 private:
  int64_t blocks_, table_bytes_ = 0, place_bytes_ = 0, places_ = 0;
  char* memory_ = nullptr;
};

}  // namespace discfused::cpu
