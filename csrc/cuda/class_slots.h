// Slots where every class has one: see row_labels.h for what is written.
#pragma once

#include "cuda/row_labels.h"

namespace discfused::cuda {

// Slot = class. A block owns kSlots slots and looks at all labels twice (they stay in cache):
// counting those before its slots tells where these begin, so no block waits for another. Within a
// tile each thread owns rows that follow one another, so that a slot's rows keep their order.
template <typename A>
struct ClassSlots {
  static constexpr int kSlots = 64 / sizeof(A);
  static constexpr int kRowsEach = 32 / sizeof(A);
  static constexpr int kTile = kRowsEach * kRowThreads;
  static constexpr int kSegments = 16;
  static constexpr int kSegment = kRowThreads / kSegments;

  struct Shared {
    int32_t key[kTile];  // the slot, or kNoSlot
    A n[kTile];
    A mass[kSlots][kRowThreads];
    int16_t count[kSlots][kRowThreads];
    int32_t segment_count[kSlots][kSegments];
    A segment_mass[kSlots][kSegments];
    int32_t before[kSegments];
    int32_t count_of[kSlots];
    int32_t next[kSlots];
  };
  // Used after the tiles' weights, in their place.
  using Totals = BatchTotals<A>;
  static_assert(sizeof(Totals) <= sizeof(A) * kTile, "fits in the place of n");

  struct Registers {
    A weight;
    int32_t wrong, before;
  };

  DISCFUSED_HD int64_t blocks(int64_t S) { return (S + kSlots - 1) / kSlots; }

  template <class Block>
  static DISCFUSED_DEVICE void run(const SlotArguments<A>& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    Totals& totals = *reinterpret_cast<Totals*>(s.n);
    auto mine = block.template registers<Registers>();
    const int64_t N = a.labels.N, S = a.S, first = block.index() * kSlots;
    const int owned = static_cast<int>(S - first < kSlots ? S - first : kSlots);
    const int64_t tiles = (N + kTile - 1) / kTile;

    const auto load = [&](int thread, int64_t tile, bool write) {
      auto& own = mine[thread];
      for (int k = 0; k < kRowsEach; ++k) {
        const int i = k * kRowThreads + thread;
        const int64_t row = tile * kTile + i;
        s.key[i] = kNoSlot;
        if (row >= N) continue;
        const RowLabel<A> label = read_label(a.labels, row);
        if (label.n != A(0)) s.key[i] = label.label;
        s.n[i] = label.n;
        if (!write) continue;
        own.weight += label.n;
        own.wrong += label.wrong;
        // The blocks share the work of writing down what each row is.
        if (tile % blocks(S) != block.index()) continue;
        a.out.slot[row] = label.n == A(0) ? -1 : label.label;
        a.out.row_weight[row] = label.n;
      }
    };

    block.each([&](int thread) {
      mine[thread] = {A(0), 0, 0};
      for (int slot = 0; slot < kSlots; ++slot) {
        s.count[slot][thread] = 0;
        s.mass[slot][thread] = A(0);
      }
    });
    for (int64_t tile = 0; tile < tiles; ++tile) {
      block.each([&](int thread) { load(thread, tile, true); });
      block.each([&](int thread) {
        for (int k = 0; k < kRowsEach; ++k) {
          const int i = thread * kRowsEach + k;
          const int64_t slot = s.key[i] - first;
          if (slot < 0) {
            ++mine[thread].before;
          } else if (slot < owned) {
            ++s.count[slot][thread];
            s.mass[slot][thread] += s.n[i];
          }
        }
      });
    }
    block.each([&](int thread) {
      totals.put(thread, mine[thread].weight, mine[thread].wrong);
      const int slot = thread / kSegments, segment = thread % kSegments;
      if (slot >= kSlots) return;
      int32_t count = 0;
      A mass = 0;
      for (int i = segment * kSegment; i < (segment + 1) * kSegment; ++i) {
        count += s.count[slot][i];
        mass += s.mass[slot][i];
      }
      s.segment_count[slot][segment] = count;
      s.segment_mass[slot][segment] = mass;
    });
    // Where the masses were there is room for the threads' counts of rows before the block's slots.
    block.each([&](int thread) {
      totals.fold(thread);
      reinterpret_cast<int32_t*>(s.mass)[thread] = mine[thread].before;
      if (thread < kSlots) {
        int32_t count = 0;
        for (int i = 0; i < kSegments; ++i) count += s.segment_count[thread][i];
        s.count_of[thread] = count;
      }
    });
    block.each([&](int thread) {
      if (thread >= kSegments) return;
      int32_t before = 0;
      for (int i = thread; i < kRowThreads; i += kSegments) {
        before += reinterpret_cast<int32_t*>(s.mass)[i];
      }
      s.before[thread] = before;
    });
    block.each([&](int thread) {
      if (thread == 0 && block.index() == 0) totals.write(a.out.total, a.out.bad);
      if (thread >= owned) return;
      int32_t begin = 0;
      for (int i = 0; i < kSegments; ++i) begin += s.before[i];
      for (int slot = 0; slot < thread; ++slot) begin += s.count_of[slot];
      A mass = 0;
      for (int i = 0; i < kSegments; ++i) mass += s.segment_mass[thread][i];
      const int64_t slot = first + thread;
      s.next[thread] = begin;
      a.out.span[slot] = begin;
      a.out.span[S + slot] = begin + s.count_of[thread];
      a.out.share[slot] = mass / nonzero(totals.total());
      a.out.slot_class[slot] = slot;
    });

    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (tiles > 1) block.each([&](int thread) { load(thread, tile, false); });
      block.each([&](int thread) {
        for (int slot = 0; slot < kSlots; ++slot) s.count[slot][thread] = 0;
        for (int k = 0; k < kRowsEach; ++k) {
          const int64_t slot = s.key[thread * kRowsEach + k] - first;
          if (slot >= 0 && slot < owned) ++s.count[slot][thread];
        }
      });
      block.each([&](int thread) {  // how many rows of the slot come before, within the segment
        const int slot = thread / kSegments, segment = thread % kSegments;
        if (slot >= kSlots) return;
        int16_t sum = 0;
        for (int i = segment * kSegment; i < (segment + 1) * kSegment; ++i) {
          const int16_t count = s.count[slot][i];
          s.count[slot][i] = sum;
          sum += count;
        }
        s.segment_count[slot][segment] = sum;
      });
      block.each([&](int thread) {  // and where each segment begins
        if (thread >= owned) return;
        int32_t position = s.next[thread];
        for (int i = 0; i < kSegments; ++i) {
          const int32_t count = s.segment_count[thread][i];
          s.segment_count[thread][i] = position;
          position += count;
        }
        s.next[thread] = position;
      });
      block.each([&](int thread) {
        for (int k = 0; k < kRowsEach; ++k) {
          const int i = thread * kRowsEach + k;
          const int64_t slot = s.key[i] - first;
          if (slot < 0 || slot >= owned) continue;
          const int32_t place = s.segment_count[slot][thread / kSegment] + s.count[slot][thread]++;
          a.out.order[place] = static_cast<int32_t>(tile * kTile + i);
        }
      });
    }
  }
};

}  // namespace discfused::cuda
