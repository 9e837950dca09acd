// Slots where only classes that are present have one: see row_labels.h for what is written.
#pragma once

#include "cuda/row_labels.h"

namespace discfused::cuda {

// Slots for the classes that are present in the batch (S = N), in the order of classes.
//
// The slot of a class is the number of rows that come before it in `order`, so a class of k rows is
// followed by k - 1 empty slots: each row finds its slot by counting, and nobody needs to know how
// many classes there are. A block owns kRows rows and compares them with all rows; a row says what
// there is to say about the slot at its own place in the order.
template <typename A>
struct PresentSlots {
  static constexpr int kRows = 16;
  static constexpr int kThreadsEach = kRowThreads / kRows;
  static constexpr int kTile = 1024;

  struct Shared {
    int32_t key[kTile];  // the class, or C for rows that do not count: they come last
    A n[kTile];
    int32_t before[kRowThreads], rank[kRowThreads], count[kRowThreads];
    A mass[kRowThreads];
    BatchTotals<A> totals;
  };
  struct Registers {
    int32_t key, before, rank, count, wrong;
    A n, mass, weight;
  };

  DISCFUSED_HD int64_t blocks(int64_t N) { return (N + kRows - 1) / kRows; }

  template <class Block>
  static DISCFUSED_DEVICE void run(const SlotArguments<A>& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    auto mine = block.template registers<Registers>();
    const int64_t N = a.labels.N, S = a.S;
    const int32_t none = static_cast<int32_t>(a.labels.C);
    const auto row_of = [&](int thread) { return block.index() * kRows + thread / kThreadsEach; };

    block.each([&](int thread) {
      auto& own = mine[thread];
      own = {none, 0, 0, 0, 0, A(0), A(0), A(0)};
      if (row_of(thread) >= N) return;
      const RowLabel<A> label = read_label(a.labels, row_of(thread));
      own.n = label.n;
      if (label.n != A(0)) own.key = label.label;
    });
    for (int64_t start = 0; start < N; start += kTile) {
      const int rows = static_cast<int>(N - start < kTile ? N - start : kTile);
      block.each([&](int thread) {
        auto& own = mine[thread];
        for (int i = thread; i < rows; i += kRowThreads) {
          const RowLabel<A> label = read_label(a.labels, start + i);
          s.key[i] = label.n == A(0) ? none : label.label;
          s.n[i] = label.n;
          own.weight += label.n;
          own.wrong += label.wrong;
        }
      });
      block.each([&](int thread) {
        auto& own = mine[thread];
        const int64_t earlier = row_of(thread) - start;
        for (int i = thread % kThreadsEach; i < rows; i += kThreadsEach) {
          const int32_t key = s.key[i];
          own.before += key < own.key;
          if (key != own.key) continue;
          ++own.count;
          own.rank += i < earlier;
          own.mass += s.n[i];
        }
      });
    }
    block.each([&](int thread) {
      const auto& own = mine[thread];
      s.before[thread] = own.before;
      s.rank[thread] = own.rank;
      s.count[thread] = own.count;
      s.mass[thread] = own.mass;
      s.totals.put(thread, own.weight, own.wrong);
    });
    block.each([&](int thread) { s.totals.fold(thread); });
    block.each([&](int thread) {
      if (thread == 0 && block.index() == 0) s.totals.write(a.out.total, a.out.bad);
      const int64_t row = row_of(thread);
      if (thread % kThreadsEach != 0 || row >= N) return;
      int32_t before = 0, rank = 0, count = 0;
      A mass = 0;
      for (int i = thread; i < thread + kThreadsEach; ++i) {
        before += s.before[i];
        rank += s.rank[i];
        count += s.count[i];
        mass += s.mass[i];
      }
      const auto& own = mine[thread];
      const bool counts = own.n != A(0), opens = counts && rank == 0;
      const int32_t place = before + rank;
      a.out.slot[row] = counts ? before : -1;
      a.out.row_weight[row] = own.n;
      a.out.order[place] = static_cast<int32_t>(row);
      a.out.span[place] = place;
      a.out.span[S + place] = opens ? place + count : place;
      a.out.share[place] = opens ? mass / nonzero(s.totals.total()) : A(0);
      a.out.slot_class[place] = opens ? own.key : -1;
    });
  }
};

}  // namespace discfused::cuda
