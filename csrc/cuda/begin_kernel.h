// The first launch: the moments of the columns beside the slots of the rows.
#pragma once

#include "cuda/class_slots.h"
#include "cuda/present_slots.h"

namespace discfused::cuda {

template <typename T>
struct MomentsArguments {
  Matrix<T> x;
  RowLabels<Accumulator<T>> labels;  // where n_i comes from while nobody has written it ...
  const Accumulator<T>* row_weight;  // ... unless this is given
  Accumulator<T>* sums;              // [parts, 2, D]: of n x, and of the magnitude n |x|
  int64_t N, D, parts;
  Activation activation;
};

// sums over one part of the rows for the columns of a block
template <typename T, bool kVector>
struct Moments {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;
  static constexpr int kTile = 1024;  // rows whose weights are looked up at a time

  struct Shared {
    A sum[2][kGroups][kColumns<T>];
    A n[kTile];
  };
  struct Registers {
    A signed_sum[kCount], size[kCount];
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(
      const MomentsArguments<T>& a, Block& block, int64_t block_index) {
    Shared& s = block.template shared<Shared>();
    auto mine = block.template registers<Registers>();
    const int64_t column_blocks = (a.D + kColumns<T> - 1) / kColumns<T>;
    const int64_t column_block = block_index % column_blocks, part = block_index / column_blocks;
    const int64_t begin = a.N * part / a.parts, end = a.N * (part + 1) / a.parts;
    const bool square = a.activation == Activation::kSquare;

    block.each([&](int thread) {
      for (int k = 0; k < kCount; ++k) {
        mine[thread].signed_sum[k] = mine[thread].size[k] = A(0);
      }
    });
    for (int64_t start = begin; start < end; start += kTile) {
      block.each([&](int thread) {
        for (int i = thread; i < kTile; i += kRowThreads) {
          const int64_t row = start + i;
          A n = 0;
          if (row < end) n = a.row_weight ? a.row_weight[row] : read_label(a.labels, row).n;
          s.n[i] = n;
        }
      });
      const int rows = static_cast<int>(end - start < kTile ? end - start : kTile);
      block.each([&](int thread) {
        auto& own = mine[thread];
        const Columns columns(column_block, thread, a.D);
        for (int i = thread / kLanes; i < rows; i += kInFlight * kGroups) {
          Pack<T> packs[kInFlight];
          A n[kInFlight];
#pragma unroll
          for (int u = 0; u < kInFlight; ++u) {
            // Rows that do not count may hold anything, and are never read.
            n[u] = i + u * kGroups < rows ? s.n[i + u * kGroups] : A(0);
            packs[u] = Pack<T>{};
            if (n[u] != A(0)) packs[u] = columns.read(a.x, start + i + u * kGroups);
          }
#pragma unroll
          for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
            for (int k = 0; k < kCount; ++k) {
              const A x = static_cast<A>(packs[u].value[k]);
              own.signed_sum[k] += n[u] * x;
              own.size[k] +=
                  n[u] * (square ? size_of<Activation::kSquare>(x) : size_of<Activation::kRelu>(x));
            }
          }
        }
      });
    }
    block.each([&](int thread) {
      const Columns columns(column_block, thread, a.D);
      for (int k = 0; k < kCount; ++k) {
        s.sum[0][thread / kLanes][columns.local(k)] = mine[thread].signed_sum[k];
        s.sum[1][thread / kLanes][columns.local(k)] = mine[thread].size[k];
      }
    });
    block.each([&](int thread) {
      const int which = thread / kColumns<T>, local = thread % kColumns<T>;
      const int64_t column = column_block * kColumns<T> + local;
      if (which >= 2 || column >= a.D) return;
      A sum = 0;
#pragma unroll 8
      for (int group = 0; group < kGroups; ++group) sum += s.sum[which][group][local];
      a.sums[(2 * part + which) * a.D + column] = sum;
    });
  }
};

template <typename T>
struct BeginArguments {
  SlotArguments<Accumulator<T>> slots;
  MomentsArguments<T> moments;
  int64_t slot_blocks;  // the blocks after these are for the moments
};

// The slots of the rows and the moments of the columns, neither of which waits for the other.
template <typename T, bool kVector>
struct Begin {
  using A = Accumulator<T>;
  static constexpr int kThreads = kRowThreads;
  using Arguments = BeginArguments<T>;
  union Shared {
    typename ClassSlots<A>::Shared class_slots;
    typename PresentSlots<A>::Shared present_slots;
    typename Moments<T, kVector>::Shared moments;
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    if (block.index() >= a.slot_blocks) {
      Moments<T, kVector>::run(a.moments, block, block.index() - a.slot_blocks);
    } else if (a.slots.S == a.slots.labels.C) {
      ClassSlots<A>::run(a.slots, block);
    } else {
      PresentSlots<A>::run(a.slots, block);
    }
  }
};

}  // namespace discfused::cuda
