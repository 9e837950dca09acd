// Columns of a block, as kernels walk over them. Included by kernels_impl.h only.
#pragma once

#include "cpu/vector.h"

namespace discfused::cpu::DISCFUSED_ISA {

// K neighbouring vectors of a row, worked on together so that the processor has independent sums
// to fill its pipelines with.
template <typename Acc, int K>
struct Group {
  static constexpr int kVectors = K;
  int64_t column;  // the first one, in the block

  int64_t at(int k) const { return column + k * kLanes<Acc>; }

  Vector<Acc> load(const Acc* row, int k) const { return DISCFUSED_ISA::load<Acc>(row + at(k)); }
  void store(Acc* row, int k, Vector<Acc> v) const { DISCFUSED_ISA::store(row + at(k), v); }

  // What a run adds to its row of the table
  void put(const Table<Acc>& table, const Run& run, const Vector<Acc> (&sums)[K]) const {
    Acc* row = table.data + run.slot * table.stride;
    for (int k = 0; k < K; ++k) store(row, k, run.opens ? sums[k] : load(row, k) + sums[k]);
  }
};

template <typename Acc, typename Body>
inline void for_each_group(Span span, Body body) {
  constexpr int64_t kStep = 4 * kLanes<Acc>;
  int64_t column = 0;
  for (; column + kStep <= span.width; column += kStep) body(Group<Acc, 4>{column});
  for (; column < span.width; column += kLanes<Acc>) body(Group<Acc, 1>{column});
}

}  // namespace discfused::cpu::DISCFUSED_ISA
