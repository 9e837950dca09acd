// How a gradient passes an activation. Included by kernels_impl.h only.
#pragma once

#include "cpu/group.h"

namespace discfused::cpu::DISCFUSED_ISA {

// phi'(z) * g in a group of columns, where z is made of packed features.
template <typename Acc, Activation A, int K>
class SlopeOfFeatures {
 public:
  SlopeOfFeatures(Group<Acc, K> group, const Acc* mean, const Source& packed)
      : group_(group), rows_(packed) {
    for (int k = 0; k < K; ++k) mean_[k] = group.load(mean, k);
  }

  Vector<Acc> pull_back(int64_t row, int k, Vector<Acc> g) const {
    return discfused::pull_back<A>(rows_.load(group_, row, k) - mean_[k], g);
  }

 private:
  Group<Acc, K> group_;
  RowReader<Acc, Acc> rows_;
  Vector<Acc> mean_[K];
};

// The same for relu, from the bits that forward left.
template <typename Acc, int K>
class SlopeOfSigns {
 public:
  SlopeOfSigns(Group<Acc, K> group, const uint64_t* signs) : group_(group), signs_(signs) {}

  Vector<Acc> pull_back(int64_t row, int k, Vector<Acc> g) const {
    return where_set<Acc>(signs_[row] >> group_.at(k), g);
  }

 private:
  Group<Acc, K> group_;
  const uint64_t* signs_;
};

}  // namespace discfused::cpu::DISCFUSED_ISA
