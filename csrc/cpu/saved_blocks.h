// What forward leaves for backward of relu and hard labels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/row_plan.h"

namespace discfused::cpu {

// Blocks of the table, each with the signs of its rows: with them backward need not look at the
// features. They live in a tensor of the size of the whole table, [S, D], in which there is room
// for all blocks, or for most where there are few empty slots or many rows for each class.
template <typename Acc>
class SavedBlocks {
 public:
  struct Place {
    Acc* table = nullptr;       // one row of kBlockColumns for every slot of the plan
    uint64_t* signs = nullptr;  // one for every row of the plan
  };

  // `data` is aligned to kAlignment, or null: nothing is saved.
  SavedBlocks(Acc* data, const RowPlan<Acc>& plan, int64_t S, int64_t D)
      : data_(reinterpret_cast<char*>(data)), blocks_(block_count<Acc>(D)) {
    table_bytes_ = static_cast<int64_t>(plan.slots.size()) * kBlockColumns<Acc> * sizeof(Acc);
    const int64_t sign_bytes = plan.rows * int64_t{sizeof(uint64_t)};
    place_bytes_ = table_bytes_ + (sign_bytes + kAlignment - 1) / kAlignment * kAlignment;
    const int64_t room = S * D * int64_t{sizeof(Acc)};
    places_ = data && place_bytes_ ? std::min(blocks_, room / place_bytes_) : 0;
  }

  // Those that are saved are spread evenly, so that all threads have as many.
  Place at(int64_t block) const {
    const int64_t place = block * places_ / blocks_;
    if ((block + 1) * places_ / blocks_ == place) return {};
    char* start = data_ + place * place_bytes_;
    return {reinterpret_cast<Acc*>(start), reinterpret_cast<uint64_t*>(start + table_bytes_)};
  }

 private:
  char* data_;
  int64_t blocks_, table_bytes_, place_bytes_, places_;
};

}  // namespace discfused::cpu
