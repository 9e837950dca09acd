// What row_labels.h says, for batches too large to count through: PyTorch sorts the keys, these
// kernels do the rest. One thread for each row, or one block for each slot.
#pragma once

#include "cuda/row_labels.h"

namespace discfused::cuda {

template <typename A>
struct SortArguments {
  SlotArguments<A> slots;
  int32_t* key;               // [N] the class of a row, C for one that does not count
  const int32_t* sorted_key;  // [N]
  const int64_t* sorted_row;  // [N]
  int64_t* wrong;             // [1] how many labels are out of range, or null
};

// row_weight and key of every row
template <typename A>
struct RowKeys {
  static constexpr int kThreads = kRowThreads;
  using Arguments = SortArguments<A>;
  struct Shared {};

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    block.each([&](int thread) {
      const int64_t row = block.index() * kThreads + thread;
      const RowLabels<A>& labels = a.slots.labels;
      if (row >= labels.N) return;
      const RowLabel<A> label = read_label(labels, row);
      a.slots.out.row_weight[row] = label.n;
      a.key[row] = label.n == A(0) ? static_cast<int32_t>(labels.C) : label.label;
      // A sum of integers does not depend on their order. Rare, so cheap.
      if (label.wrong) block.add(a.wrong, int64_t(1));
    });
  }
};

// slot, order, and span of every slot that has rows (the others stay as they were: 0). A thread
// owns a place in the order.
template <typename A>
struct SortedSpans {
  static constexpr int kThreads = kRowThreads;
  using Arguments = SortArguments<A>;
  struct Shared {};

  static DISCFUSED_DEVICE int64_t first_of(const int32_t* key, int64_t end, int32_t value) {
    int64_t low = 0, high = end;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (key[middle] < value) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    block.each([&](int thread) {
      const int64_t place = block.index() * kThreads + thread;
      const int64_t N = a.slots.labels.N, C = a.slots.labels.C, S = a.slots.S;
      if (place == 0 && *a.wrong > 0) *a.slots.out.bad = static_cast<int32_t>(*a.wrong);
      if (place >= N) return;
      const int32_t key = a.sorted_key[place];
      const int64_t row = a.sorted_row[place];
      a.slots.out.order[place] = static_cast<int32_t>(row);
      if (key == C) {
        a.slots.out.slot[row] = -1;
        return;
      }
      const bool opens = place == 0 || a.sorted_key[place - 1] != key;
      const bool closes = place == N - 1 || a.sorted_key[place + 1] != key;
      const int64_t slot = S == C ? key : (opens ? place : first_of(a.sorted_key, place, key));
      a.slots.out.slot[row] = static_cast<int32_t>(slot);
      if (opens) a.slots.out.span[slot] = static_cast<int32_t>(place);
      if (closes) a.slots.out.span[S + slot] = static_cast<int32_t>(place) + 1;
    });
  }
};

// share and slot_class of every slot, from its rows
template <typename A>
struct SortedShares {
  static constexpr int kThreads = kRowThreads;
  using Arguments = SortArguments<A>;
  struct Shared {
    A mass[kThreads];
    A mass_of[kWarp];
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    const int64_t S = a.slots.S, slot = block.index();
    const SlotOutputs<A>& out = a.slots.out;
    const int32_t begin = out.span[slot], end = out.span[S + slot];
    block.each([&](int thread) {
      A mass = 0;
      for (int64_t i = begin + thread; i < end; i += kThreads) {
        mass += out.row_weight[out.order[i]];
      }
      s.mass[thread] = mass;
    });
    block.each([&](int thread) {
      if (thread >= kWarp) return;
      A mass = 0;
      for (int i = thread; i < kThreads; i += kWarp) mass += s.mass[i];
      s.mass_of[thread] = mass;
    });
    block.each([&](int thread) {
      if (thread != 0) return;
      A mass = 0;
      for (int i = 0; i < kWarp; ++i) mass += s.mass_of[i];
      out.share[slot] = mass / nonzero(*out.total);
      const bool empty = begin == end;
      out.slot_class[slot] = S == a.slots.labels.C ? slot : (empty ? -1 : a.sorted_key[begin]);
    });
  }
};

}  // namespace discfused::cuda
