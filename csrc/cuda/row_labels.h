// The rows: which slot each belongs to, how much it counts, and all rows in the order of slots.
//
// Two ways (class_slots.h, present_slots.h), in one launch and without atomics; and one for more
// rows (sorted_kernels.h). For N rows and S slots they write
//
//   slot        [N] int32  the row's slot, -1 for a row that does not count
//   row_weight  [N]        n_i
//   order       [N] int32  the rows that count, slot after slot, each slot's in their own order
//   span        [2, S] int32  where a slot's rows begin and end in `order`
//   share       [S]        the slot's part of all weight
//   slot_class  [S] int64  the class of a slot, -1 for an empty one
//   total       [1]        the sum of n_i
//   bad         [1] int32  how many labels are out of range; written only if there are any
#pragma once

#include "cuda/columns.h"

namespace discfused::cuda {

template <typename A>
struct RowLabels {
  const int64_t* target;   // [N]
  const A* weight;         // [C] or null
  const A* sample_weight;  // [N] or null
  int64_t N, C, ignore_index;
};

template <typename A>
struct RowLabel {
  int32_t label;  // of a row that counts
  A n;            // 0 for a row that does not count
  bool wrong;     // the label is out of range
};

template <typename A>
DISCFUSED_DEVICE RowLabel<A> read_label(const RowLabels<A>& in, int64_t row) {
  const int64_t label = in.target[row];
  if (label == in.ignore_index) return {0, A(0), false};
  if (label < 0 || label >= in.C) return {0, A(0), true};
  A n = in.weight ? in.weight[label] : A(1);
  // Where n is 0 already, a sample weight that is NaN must not bring the row back.
  if (in.sample_weight && n != A(0)) n *= in.sample_weight[row];
  return {static_cast<int32_t>(label), n, false};
}

template <typename A>
struct SlotOutputs {
  int32_t* slot;
  A* row_weight;
  int32_t* order;
  int32_t* span;
  A* share;
  int64_t* slot_class;
  A* total;
  int32_t* bad;
};

template <typename A>
struct SlotArguments {
  RowLabels<A> labels;
  SlotOutputs<A> out;
  int64_t S;
};

constexpr int32_t kNoSlot = INT32_MAX;

// The weight of all rows and the number of wrong labels, from what each thread has seen of them.
template <typename A>
struct BatchTotals {
  A weight[kRowThreads];
  int32_t wrong[kRowThreads];
  A weight_of[kWarp];
  int32_t wrong_of[kWarp];

  DISCFUSED_DEVICE void put(int thread, A own_weight, int32_t own_wrong) {
    weight[thread] = own_weight;
    wrong[thread] = own_wrong;
  }

  DISCFUSED_DEVICE void fold(int thread) {
    if (thread >= kWarp) return;
    A sum = 0;
    int32_t count = 0;
    for (int i = thread; i < kRowThreads; i += kWarp) {
      sum += weight[i];
      count += wrong[i];
    }
    weight_of[thread] = sum;
    wrong_of[thread] = count;
  }

  DISCFUSED_DEVICE A total() const {
    A sum = 0;
    for (int i = 0; i < kWarp; ++i) sum += weight_of[i];
    return sum;
  }

  DISCFUSED_DEVICE void write(A* total_out, int32_t* bad) const {
    *total_out = total();
    int32_t count = 0;
    for (int i = 0; i < kWarp; ++i) count += wrong_of[i];
    if (count > 0) *bad = count;
  }
};

}  // namespace discfused::cuda
