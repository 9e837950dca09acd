// From features to the table: the moments of the columns beside the slots of the rows, then one
// walk over the rows of every slot.
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

template <typename T>
struct TableArguments {
  using A = Accumulator<T>;
  Matrix<T> x;
  const A* row_weight;
  const A* total;
  const int32_t* order;
  const int32_t* span;
  const A* sums;        // [sum_parts, 2, D] of Moments
  const A* given_mean;  // [D] or null
  A* mean;              // [D] or null
  A* magnitude;         // [D]
  A* table;             // [S, D], once for each part, `part_stride` numbers apart
  A* slope;             // the same or null: sum of n phi'(x - mean)
  int64_t S, D, sum_parts, parts, part_stride;
  int split;  // into how many groups of threads a slot's rows are dealt: a power of 2
  Activation activation;
  bool center;
};

// A block looks at 128 bytes of the rows of 32 / split slots, or of one part of these rows.
template <typename T, bool kVector>
struct Table {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;
  static constexpr int kThreads = kRowThreads;
  using Arguments = TableArguments<T>;

  struct Shared {
    PartSums<T> moments[2];
    A mean[kColumns<T>];
    A sum[2][kGroups][kColumns<T>];
  };
  struct Registers {
    A mass[kCount], slope[kCount];
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    auto mine = block.template registers<Registers>();
    const int64_t column_blocks = (a.D + kColumns<T> - 1) / kColumns<T>;
    const int64_t column_block = block.index() % column_blocks;
    const int64_t line = block.index() / column_blocks;
    const int slots = kGroups / a.split;
    const int64_t slot_blocks = (a.S + slots - 1) / slots;
    const int64_t part = line / slot_blocks, first_slot = line % slot_blocks * slots;

    block.each([&](int thread) {
      for (int i = 0; i < 2; ++i) {
        s.moments[i].partial(thread, a.sums + i * a.D, a.sum_parts, 2 * a.D, column_block, a.D);
      }
    });
    block.each([&](int thread) {
      if (thread >= kColumns<T>) return;
      const int64_t column = column_block * kColumns<T> + thread;
      s.mean[thread] = A(0);
      if (column >= a.D) return;
      if (a.center) {
        s.mean[thread] =
            a.given_mean ? a.given_mean[column] : s.moments[0].total(thread) / nonzero(*a.total);
      }
      if (line != 0) return;
      a.magnitude[column] = s.moments[1].total(thread);
      if (a.mean) a.mean[column] = s.mean[thread];
    });
    block.each([&](int thread) {
      auto& own = mine[thread];
      for (int k = 0; k < kCount; ++k) own.mass[k] = own.slope[k] = A(0);
      const int group = thread / kLanes;
      const int64_t slot = first_slot + group / a.split;
      const Columns columns(column_block, thread, a.D);
      if (slot < a.S) {
        A mean[kCount];
        for (int k = 0; k < kCount; ++k) mean[k] = s.mean[columns.local(k)];
        const int64_t begin = a.span[slot], rows = a.span[a.S + slot] - begin;
        const int64_t end = begin + rows * (part + 1) / a.parts;
        int64_t place = begin + rows * part / a.parts + group % a.split;
        for (; place < end; place += kInFlight * a.split) add(a, columns, place, end, mean, own);
        if (a.split == 1) {
          const int64_t place = part * a.part_stride + slot * a.D;
          columns.write_line(a.table + place, own.mass);
          if (a.slope) columns.write_line(a.slope + place, own.slope);
        }
      }
      if (a.split == 1) return;
      for (int k = 0; k < kCount; ++k) {
        s.sum[0][group][columns.local(k)] = own.mass[k];
        s.sum[1][group][columns.local(k)] = own.slope[k];
      }
    });
    if (a.split == 1) return;
    block.each([&](int thread) {
      for (int i = thread; i < 2 * slots * kColumns<T>; i += kThreads) {
        const int local = i % kColumns<T>, which = i / kColumns<T> % 2;
        const int own_slot = i / (2 * kColumns<T>);
        const int64_t slot = first_slot + own_slot, column = column_block * kColumns<T> + local;
        A* out = which == 0 ? a.table : a.slope;
        if (slot >= a.S || column >= a.D || !out) continue;
        A sum = 0;
        for (int g = 0; g < a.split; ++g) sum += s.sum[which][own_slot * a.split + g][local];
        out[part * a.part_stride + slot * a.D + column] = sum;
      }
    });
  }

  static DISCFUSED_DEVICE void add(
      const Arguments& a, const Columns& columns, int64_t place, int64_t end,
      const A (&mean)[kCount], Registers& own) {
    Pack<T> packs[kInFlight];
    int32_t row[kInFlight];
    A n[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      row[u] = place + u * a.split < end ? a.order[place + u * a.split] : -1;
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      n[u] = A(0);
      if (row[u] < 0) continue;
      n[u] = a.row_weight[row[u]];
      packs[u] = columns.read(a.x, row[u]);
    }
    with_activation(a.activation, [&](auto activation) {
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (row[u] < 0) continue;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const A z = static_cast<A>(packs[u].value[k]) - mean[k];
          own.mass[k] += n[u] * activate<activation.value>(z);
          if (a.slope) own.slope[k] += pull_back<activation.value>(z, n[u]);
        }
      }
    });
  }
};

template <typename A>
struct FoldArguments {
  const A* sums;  // [parts, width]
  A* table;       // [size]
  A* slope;       // [size], if width is 2 * size
  int64_t parts, width, size;
};

template <typename A>
struct Fold {
  static constexpr int kThreads = kRowThreads;
  using Arguments = FoldArguments<A>;
  struct Shared {};

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    block.each([&](int thread) {
      const int64_t i = block.index() * kThreads + thread;
      if (i >= a.width) return;
      A sum = 0;
#pragma unroll 8
      for (int64_t part = 0; part < a.parts; ++part) sum += a.sums[part * a.width + i];
      (i < a.size ? a.table[i] : a.slope[i - a.size]) = sum;
    });
  }
};

}  // namespace discfused::cuda
