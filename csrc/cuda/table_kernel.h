// From features to the table: one walk over the rows of every slot.
#pragma once

#include "cuda/columns.h"

namespace discfused::cuda {

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

// A block looks at 128 bytes of the rows of 32 / split slots, or of one part of these rows. A slot
// with many times as many rows as the others is left to all groups, after the others.
template <typename T, bool kVector>
struct Table {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kFewRows = 64;  // that a group walks alone
  using Arguments = TableArguments<T>;

  struct Shared {
    PartSums<T> moments[2];
    A mean[kColumns<T>];
    A sum[2][kGroups][kColumns<T>];
    bool large[kGroups];
    int large_slots[kGroups], large_count;
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
      if (thread >= slots) return;
      const int64_t slot = first_slot + thread;
      const int64_t rows = slot < a.S ? a.span[a.S + slot] - a.span[slot] : 0;
      s.large[thread] = a.split < kGroups && rows > kFewRows * a.split * a.parts;
    });
    block.each([&](int thread) {
      if (thread == kThreads - 1) {
        int count = 0;
        for (int slot = 0; slot < slots; ++slot) {
          if (s.large[slot]) s.large_slots[count++] = slot;
        }
        s.large_count = count;
      }
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

    const int rounds = 1 + s.large_count;
    for (int round = 0; round < rounds; ++round) {
      const int first = round == 0 ? 0 : s.large_slots[round - 1];
      const int split = round == 0 ? a.split : kGroups;
      const auto is_due = [&](int own_slot) {
        return first_slot + own_slot < a.S && s.large[own_slot] == (round > 0);
      };
      block.each([&](int thread) {
        auto& own = mine[thread];
        for (int k = 0; k < kCount; ++k) own.mass[k] = own.slope[k] = A(0);
        const int group = thread / kLanes, own_slot = first + group / split;
        if (!is_due(own_slot)) return;
        const int64_t slot = first_slot + own_slot;
        const Columns columns(column_block, thread, a.D);
        A mean[kCount];
        for (int k = 0; k < kCount; ++k) mean[k] = s.mean[columns.local(k)];
        const int64_t begin = a.span[slot], rows = a.span[a.S + slot] - begin;
        const int64_t end = begin + rows * (part + 1) / a.parts;
        int64_t place = begin + rows * part / a.parts + group % split;
        for (; place < end; place += kInFlight * split) {
          add(a, columns, place, split, end, mean, own);
        }
        if (split == 1) {
          const int64_t to = part * a.part_stride + slot * a.D;
          columns.write_line(a.table + to, own.mass);
          if (a.slope) columns.write_line(a.slope + to, own.slope);
          return;
        }
        for (int k = 0; k < kCount; ++k) {
          s.sum[0][group][columns.local(k)] = own.mass[k];
          s.sum[1][group][columns.local(k)] = own.slope[k];
        }
      });
      if (split == 1) continue;
      block.each([&](int thread) {
        const int sums = kGroups / split * 2 * kColumns<T>;
        for (int i = thread; i < sums; i += kThreads) {
          const int local = i % kColumns<T>, which = i / kColumns<T> % 2;
          const int nth = i / (2 * kColumns<T>);
          const int64_t column = column_block * kColumns<T> + local;
          A* out = which == 0 ? a.table : a.slope;
          if (!is_due(first + nth) || column >= a.D || !out) continue;
          A sum = 0;
          for (int g = 0; g < split; ++g) sum += s.sum[which][nth * split + g][local];
          out[part * a.part_stride + (first_slot + first + nth) * a.D + column] = sum;
        }
      });
    }
  }

  // Up to kInFlight rows, `step` apart in the order.
  static DISCFUSED_DEVICE void add(
      const Arguments& a, const Columns& columns, int64_t place, int step, int64_t end,
      const A (&mean)[kCount], Registers& own) {
    Pack<T> packs[kInFlight];
    int32_t row[kInFlight];
    A n[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      row[u] = place + u * step < end ? a.order[place + u * step] : -1;
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
