// The first look at the features.
#pragma once

#include <vector>

#include "cpu/blocks.h"
#include "cpu/row_plan.h"

namespace discfused::cpu {

// mean = sum_i n_i x_ij / total, and magnitude = sum_i n_i |x_ij|, squared for the activation that
// squares.
//
// A tall batch is read once for all columns, in long pieces of its rows, which memory likes best.
// The blocks of another are read one by one, and left in the cache for the second look.
template <typename Acc>
class Moments {
 public:
  // `mean` [D] is where means are written, or null if features are not centred.
  Moments(const Features& x, const RowPlan<Acc>& plan, int activation, Acc total, Acc* mean);

  // Those of the block that `rows` is at: 0 for the mean of features that are not centred.
  void of_block(
      int64_t block, BlockRows<Acc>& rows, ColumnValues<Acc>& mean,
      ColumnValues<Acc>& magnitude) const;

 private:
  void read_stripes(const Features& x, const RowPlan<Acc>& plan);

  int activation_;
  Acc total_;
  Acc* mean_;
  int64_t blocks_read_;
  std::vector<Acc> magnitude_;  // of the blocks that have been read
};

}  // namespace discfused::cpu
