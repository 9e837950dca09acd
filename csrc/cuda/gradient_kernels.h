// The feature gradient:
//
//   dx_ij = v_ij - n_i / sum_k n_k * sum_k v_kj,   v_ij = phi'(x_ij - mu_j) n_i G_{c_i j}
//
// The sum over the rows comes with the terms (contract.Terms.feature_coef, rows 4 and 5), or from a
// look at all rows before.
#pragma once

#include "cuda/columns.h"

namespace discfused::cuda {

template <typename T>
struct GradientArguments {
  using A = Accumulator<T>;
  Matrix<T> x;
  const int32_t* slot;    // [N]; null where `table` has a line for every row: n_i G of soft labels
  const A* row_weight;    // [N]
  const A* total;         // []
  const A* mean;          // [D] or null
  const A* table;         // [S, D]: H, or G itself without feature_coef
  const A* feature_coef;  // [4 or 6, D] or null
  const A* slot_coef;     // [S]
  const A* grad_gini;     // []
  const A* grad_kl;       // []
  A gini_weight, kl_weight;
  A* sums;  // [parts, D]: of v over each part of the rows; null where the terms told their sum
  T* dx;    // [N, D]
  int64_t N, D, parts;
  int64_t rows_each;  // how many rows a group of threads walks over
  Activation activation;
};

// G of the thread's columns
template <typename T, bool kVector>
struct ColumnPull {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;

  A mean[kCount], outer[kCount], constant[kCount], slope[kCount];
  A g1, g2;

  DISCFUSED_DEVICE ColumnPull(const GradientArguments<T>& a, const Columns& columns)
      : mean{}, outer{}, constant{}, slope{}, g1(0), g2(0) {
    if (a.mean) columns.read_line(a.mean, mean);
    if (!a.feature_coef) return;
    g1 = *a.grad_gini * a.gini_weight;
    g2 = *a.grad_kl * a.kl_weight;
    A squares[kCount], projection[kCount], inverse[kCount];
    columns.read_line(a.feature_coef, outer);
    columns.read_line(a.feature_coef + a.D, inverse);
    columns.read_line(a.feature_coef + 2 * a.D, squares);
    columns.read_line(a.feature_coef + 3 * a.D, projection);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const FeaturePull<A> pull =
          feature_pull(outer[k], inverse[k], squares[k], projection[k], g1, g2);
      constant[k] = pull.constant;
      slope[k] = pull.slope;
    }
  }
};

// v of kRows rows that are `step` apart; 0 for rows that do not count or do not exist
template <typename T, bool kVector, int kRows>
struct RowPull {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;

  Pack<T> x[kRows];
  A g[kRows][kCount];
  A coef[kRows], n[kRows];

  DISCFUSED_DEVICE void read(
      const GradientArguments<T>& a, const Columns& columns, int64_t row, int64_t step,
      int64_t end) {
    int64_t line[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t here = row + u * step;
      n[u] = here < end ? a.row_weight[here] : A(0);
      line[u] = here < end && a.slot ? a.slot[here] : here;
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      coef[u] = A(0);
      if (n[u] == A(0)) continue;
      x[u] = columns.read(a.x, row + u * step);
      columns.read_line(a.table + line[u] * a.D, g[u]);
      if (a.feature_coef) coef[u] = a.slot_coef[line[u]];
    }
  }

  // In the place of g.
  DISCFUSED_DEVICE void pull(const GradientArguments<T>& a, const ColumnPull<T, kVector>& column) {
    with_activation(a.activation, [&](auto activation) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          if (n[u] == A(0)) {
            g[u][k] = A(0);
            continue;
          }
          A value = g[u][k];
          if (a.feature_coef) {
            value = table_gradient(
                column.outer[k], column.constant[k], column.slope[k], value, column.g2 * coef[u]);
          }
          const A z = static_cast<A>(x[u].value[k]) - column.mean[k];
          g[u][k] = pull_back<activation.value>(z, a.slot ? n[u] * value : value);
        }
      }
    });
  }
};

// sums over one part of the rows for the columns of a block
template <typename T, bool kVector>
struct GradientSum {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kRows = kVector ? 2 : 1;  // the slow way compiles faster
  using Arguments = GradientArguments<T>;
  struct Shared {
    A sum[kGroups][kColumns<T>];
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    const int64_t column_blocks = (a.D + kColumns<T> - 1) / kColumns<T>;
    const int64_t column_block = block.index() % column_blocks;
    const int64_t part = block.index() / column_blocks;

    block.each([&](int thread) {
      const Columns columns(column_block, thread, a.D);
      const ColumnPull<T, kVector> column(a, columns);
      const int64_t end = a.N * (part + 1) / a.parts;
      A sum[kCount] = {};
      int64_t row = a.N * part / a.parts + thread / kLanes;
      for (; row < end; row += kRows * kGroups) {
        RowPull<T, kVector, kRows> rows;
        rows.read(a, columns, row, kGroups, end);
        rows.pull(a, column);
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) sum[k] += rows.g[u][k];
        }
      }
      for (int k = 0; k < kCount; ++k) s.sum[thread / kLanes][columns.local(k)] = sum[k];
    });
    block.each([&](int thread) {
      const int64_t column = column_block * kColumns<T> + thread;
      if (thread >= kColumns<T> || column >= a.D) return;
      A sum = 0;
#pragma unroll 8
      for (int group = 0; group < kGroups; ++group) sum += s.sum[group][thread];
      a.sums[part * a.D + column] = sum;
    });
  }
};

template <typename T, bool kVector>
struct Gradient {
  using A = Accumulator<T>;
  using Columns = OwnColumns<T, kVector>;
  static constexpr int kCount = Columns::kCount;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kRows = kVector ? 2 : 1;  // the slow way compiles faster
  using Arguments = GradientArguments<T>;
  struct Shared {
    PartSums<T> rows;
    A sum[kColumns<T>];
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    const int64_t column_blocks = (a.D + kColumns<T> - 1) / kColumns<T>;
    const int64_t column_block = block.index() % column_blocks;
    const int64_t first = block.index() / column_blocks * kGroups * a.rows_each;

    // sum_k v_kj / sum_k n_k of the block's columns
    if (a.mean) {
      if (a.sums) {
        block.each(
            [&](int thread) { s.rows.partial(thread, a.sums, a.parts, a.D, column_block, a.D); });
      }
      block.each([&](int thread) {
        const int64_t column = column_block * kColumns<T> + thread;
        if (thread >= kColumns<T> || column >= a.D) return;
        A sum = a.sums ? s.rows.total(thread) : told_sum(a, column);
        s.sum[thread] = sum / nonzero(*a.total);
      });
    }
    block.each([&](int thread) {
      const Columns columns(column_block, thread, a.D);
      const ColumnPull<T, kVector> column(a, columns);
      int64_t end = first + kGroups * a.rows_each;
      if (end > a.N) end = a.N;
      int64_t row = first + thread / kLanes;
      for (; row < end; row += kRows * kGroups) {
        RowPull<T, kVector, kRows> rows;
        rows.read(a, columns, row, kGroups, end);
        rows.pull(a, column);
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
          if (row + u * kGroups >= end) break;
#pragma unroll
          for (int k = 0; k < kCount; ++k) {
            // Rows that do not count get 0, also where the rest is NaN.
            if (a.mean && rows.n[u] != A(0)) rows.g[u][k] -= rows.n[u] * s.sum[columns.local(k)];
          }
          columns.write_line(a.dx + (row + u * kGroups) * a.D, rows.g[u]);
        }
      }
    });
  }

  static DISCFUSED_DEVICE A told_sum(const Arguments& a, int64_t column) {
    const A outer = a.feature_coef[column];
    if (outer == A(0)) return A(0);
    const A g1 = *a.grad_gini * a.gini_weight, g2 = *a.grad_kl * a.kl_weight;
    const A* coef = a.feature_coef + 4 * a.D + column;
    return outer * (A(2) * g1 * coef[0] + g2 * coef[a.D]);
  }
};

}  // namespace discfused::cuda
