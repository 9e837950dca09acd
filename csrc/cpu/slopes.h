// How a gradient passes an activation. Included by kernels_impl.h only.
#pragma once

#include "cpu/group.h"

namespace discfused::cpu::DISCFUSED_ISA {

// phi'(z) * g in a group of columns, where z is made of packed features.
template <typename Acc, Activation A, int K>
class SlopeOfFeatures {
 public:
  SlopeOfFeatures(Group<Acc, K> group, const Acc* mean, const Source& packed)
      : rows_(group, packed) {
    for (int k = 0; k < K; ++k) mean_[k] = group.load(mean, k);
  }

  const Acc* row(int64_t row) const { return rows_.row(row); }

  Vector<Acc> pull_back(const Acc* row, int k, Vector<Acc> g) const {
    return discfused::pull_back<A>(rows_.load(row, k) - mean_[k], g);
  }

 private:
  RowReader<Acc, Acc, K> rows_;
  Vector<Acc> mean_[K];
};

// The same for relu, from the bits that forward left.
template <typename Acc, int K>
class SlopeOfSigns {
 public:
  SlopeOfSigns(Group<Acc, K> group, const uint64_t* signs) : column_(group.column), signs_(signs) {}

  uint64_t row(int64_t row) const { return signs_[row] >> column_; }

  Vector<Acc> pull_back(uint64_t row, int k, Vector<Acc> g) const {
    return where_set<Acc>(row >> k * kLanes<Acc>, g);
  }

 private:
  int64_t column_;
  const uint64_t* signs_;
};

}  // namespace discfused::cpu::DISCFUSED_ISA
