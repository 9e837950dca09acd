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
};

// Where a group of columns of the table is written.
template <typename Acc, int K>
class TableWriter {
 public:
  TableWriter(Group<Acc, K> group, const Table<Acc>& table) : group_(group), table_(table) {}

  // What a run adds to its row.
  void add(const Run& run, const Vector<Acc> (&sums)[K]) {
    Acc* row = table_.data + run.slot * table_.stride;
    for (int k = 0; k < K; ++k) {
      group_.store(row, k, run.opens ? sums[k] : group_.load(row, k) + sums[k]);
      mass_[k] += sums[k];
    }
  }

  void add_mass_to(Acc* mass) const {
    if (!mass) return;
    for (int k = 0; k < K; ++k) group_.store(mass, k, group_.load(mass, k) + mass_[k]);
  }

 private:
  Group<Acc, K> group_;
  Table<Acc> table_;
  Vector<Acc> mass_[K] = {};  // the sum of all that was added
};

// A group of columns of rows of element type T. As with all that works on a group, what the loop
// over rows needs is kept here by value, where no store can change it.
template <typename Acc, typename T, int K>
class RowReader {
 public:
  RowReader(Group<Acc, K> group, const Source& from)
      : data_(static_cast<const T*>(from.data) + group.column),
        row_stride_(from.row_stride),
        order_(from.order),
        last_(from.rows - 1) {}

  const T* row(int64_t row) const { return data_ + order_[row] * row_stride_; }

  Vector<Acc> load(const T* row, int k) const { return widen(row + k * kLanes<Acc>); }

  // Asks for a row to come. Rows lie far apart, and in no order that the processor could foresee.
  // The second-level cache is asked, for it can wait for more of them than the first.
  void prefetch(int64_t ahead_of) const {
    constexpr int64_t kAhead = 48;
    const T* next = row(ahead_of + kAhead < last_ ? ahead_of + kAhead : last_);
    for (int k = 0; k < K; ++k) __builtin_prefetch(next + k * kLanes<Acc>, 0, 2);
  }

 private:
  const T* data_;  // of the group's first column
  int64_t row_stride_;
  const int64_t* order_;
  int64_t last_;
};

template <typename Acc, typename Body>
inline void for_each_group(Span span, Body body) {
  constexpr int64_t kStep = 4 * kLanes<Acc>;
  int64_t column = 0;
  for (; column + kStep <= span.width; column += kStep) body(Group<Acc, 4>{column});
  for (; column < span.width; column += kLanes<Acc>) body(Group<Acc, 1>{column});
}

}  // namespace discfused::cpu::DISCFUSED_ISA
