// The kernels that read the rows of a block: packing, and forward. Included by kernels_impl.h only.
#pragma once

#include "cpu/group.h"

namespace discfused::cpu::DISCFUSED_ISA {

// ---------------------------------------------------------------- between features and blocks

template <typename Acc, typename T>
void pack(const Source& from, int64_t column_stride, int64_t row_count, Span span, Acc* packed) {
  if (column_stride == 1 && span.columns == span.width) {
    for_each_group<Acc>(span, [&](auto group) {
      const RowReader<Acc, T, group.kVectors> rows(group, from);
      for (int64_t row = 0; row < row_count; ++row) {
        rows.prefetch(row);
        const T* x = rows.row(row);
        for (int k = 0; k < group.kVectors; ++k) {
          group.store(packed + row * span.width, k, rows.load(x, k));
        }
      }
    });
    return;
  }
  for (int64_t row = 0; row < row_count; ++row, packed += span.width) {
    const T* data = static_cast<const T*>(from.data) + from.order[row] * from.row_stride;
    int64_t column = 0;
    if (column_stride == 1) {
      for (; column + kLanes<Acc> <= span.columns; column += kLanes<Acc>) {
        store(packed + column, widen(data + column));
      }
    }
    for (; column < span.width; column += kLanes<Acc>) {
      T values[kLanes<Acc>] = {};
      for (int64_t lane = 0; lane < kLanes<Acc> && column + lane < span.columns; ++lane) {
        values[lane] = data[(column + lane) * column_stride];
      }
      store(packed + column, widen(values));
    }
  }
}

// ---------------------------------------------------------------- forward

template <typename Acc, Activation A, typename T>
void moments(const RowChunk<Acc>& chunk, Span span, Acc* sum, Acc* magnitude) {
  for_each_group<Acc>(span, [=](auto group) {
    constexpr int K = group.kVectors;
    const RowReader<Acc, T, K> rows(group, chunk.from);
    const Acc* weight = chunk.weight;
    Acc* copy = chunk.copy;
    Vector<Acc> sums[K] = {}, magnitudes[K] = {};
    for (int64_t row = 0, end = chunk.rows; row < end; ++row) {
      rows.prefetch(row);
      const T* data = rows.row(row);
      const Acc n = weight[row];
      for (int k = 0; k < K; ++k) {
        const Vector<Acc> x = rows.load(data, k);
        sums[k] += n * x;
        magnitudes[k] += n * size_of<A>(x);
        if (copy) group.store(copy + row * span.width, k, x);
      }
    }
    for (int k = 0; k < K; ++k) {
      group.store(sum, k, group.load(sum, k) + sums[k]);
      group.store(magnitude, k, group.load(magnitude, k) + magnitudes[k]);
    }
  });
}

// R rows at once, so that sums, which live in the first-level cache, are loaded and stored less
// often. Each column is added up in the same order as by moments().
template <int R, Activation A, typename T, typename Acc>
inline void add_stripe_moments(
    const RowChunk<Acc>& chunk, int64_t first, int64_t columns, Acc* sum, Acc* magnitude) {
  const T* rows[R];
  Acc weights[R];
  for (int r = 0; r < R; ++r) {
    const int64_t from = chunk.from.order[first + r];
    rows[r] = static_cast<const T*>(chunk.from.data) + from * chunk.from.row_stride;
    weights[r] = chunk.weight[first + r];
  }
  for (int64_t column = 0; column < columns; column += kLanes<Acc>) {
    Vector<Acc> s = load(sum + column), m = load(magnitude + column);
    for (int r = 0; r < R; ++r) {
      const Vector<Acc> x = widen(rows[r] + column);
      s += weights[r] * x;
      m += weights[r] * size_of<A>(x);
    }
    store(sum + column, s);
    store(magnitude + column, m);
  }
}

template <typename Acc, Activation A, typename T>
void stripe_moments(const RowChunk<Acc>& chunk, int64_t columns, Acc* sum, Acc* magnitude) {
  constexpr int64_t kMost = kStripeBlocks * kBlockColumns<Acc>;
  alignas(kAlignment) Acc sums[kMost], magnitudes[kMost];
  std::memset(sums, 0, columns * sizeof(Acc));
  std::memset(magnitudes, 0, columns * sizeof(Acc));
  constexpr int kRows = 4;
  int64_t row = 0;
  for (; row + kRows <= chunk.rows; row += kRows) {
    add_stripe_moments<kRows, A, T>(chunk, row, columns, sums, magnitudes);
  }
  for (; row < chunk.rows; ++row)
    add_stripe_moments<1, A, T>(chunk, row, columns, sums, magnitudes);
  for (int64_t column = 0; column < columns; column += kLanes<Acc>) {
    store(sum + column, load(sum + column) + load(sums + column));
    store(magnitude + column, load(magnitude + column) + load(magnitudes + column));
  }
}

// Hard labels: every row is one entry.
template <typename Acc, Activation A, typename T>
void gather(
    const RowChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table, Acc* mass) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const Acc* weight = chunk.weight;
    const RowReader<Acc, T, K> rows(group, chunk.from);
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    TableWriter<Acc, K> writer(group, table);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t row = run->begin, end = run->end; row < end; ++row) {
        rows.prefetch(row);
        const T* x = rows.row(row);
        for (int k = 0; k < K; ++k) {
          sums[k] += weight[row] * discfused::activate<A>(rows.load(x, k) - mu[k]);
        }
      }
      writer.add(*run, sums);
    }
    writer.add_mass_to(mass);
  });
}

template <typename Acc, typename T>
void gather_signs(
    const RowChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table, Acc* mass) {
  for (int64_t row = 0; row < chunk.rows; ++row) chunk.signs[row] = 0;
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const Acc* weight = chunk.weight;
    uint64_t* signs = chunk.signs;
    const RowReader<Acc, T, K> rows(group, chunk.from);
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    TableWriter<Acc, K> writer(group, table);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t row = run->begin, end = run->end; row < end; ++row) {
        rows.prefetch(row);
        const T* x = rows.row(row);
        uint64_t bits = 0;
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> z = rows.load(x, k) - mu[k];
          sums[k] += weight[row] * discfused::activate<Activation::kRelu>(z);
          bits |= positive_bits<Acc>(z) << k * kLanes<Acc>;
        }
        signs[row] |= bits << group.column;
      }
      writer.add(*run, sums);
    }
    writer.add_mass_to(mass);
  });
}

template <typename Acc, Activation A>
void gather_slopes(
    const RowChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table, const Table<Acc>& slopes) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const Acc* weights = chunk.weight;
    const RowReader<Acc, Acc, K> rows(group, chunk.from);
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    TableWriter<Acc, K> writer(group, table), slope_writer(group, slopes);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {}, slope_sums[K] = {};
      for (int64_t row = run->begin, end = run->end; row < end; ++row) {
        const Acc* x = rows.row(row);
        const Vector<Acc> weight = Vector<Acc>{} + weights[row];
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> z = rows.load(x, k) - mu[k];
          sums[k] += weight * discfused::activate<A>(z);
          slope_sums[k] += discfused::pull_back<A>(z, weight);
        }
      }
      writer.add(*run, sums);
      slope_writer.add(*run, slope_sums);
    }
  });
}

// Soft labels: rows of activations, or of slopes, which entries refer to.
template <typename Acc>
void gather_entries(
    const RowChunk<Acc>& chunk, const Runs<Acc>& runs, Span span, const Table<Acc>& table,
    Acc* mass) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const RowReader<Acc, Acc, K> rows(group, chunk.from);
    TableWriter<Acc, K> writer(group, table);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t entry = run->begin, end = run->end; entry < end; ++entry) {
        const Acc* values = rows.row(runs.entry_row[entry]);
        for (int k = 0; k < K; ++k) sums[k] += runs.entry_weight[entry] * rows.load(values, k);
      }
      writer.add(*run, sums);
    }
    writer.add_mass_to(mass);
  });
}

template <typename Acc, typename Function>
inline void apply(const RowChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out, Function f) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const RowReader<Acc, Acc, K> rows(group, chunk.from);
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    for (int64_t row = 0; row < chunk.rows; ++row) {
      const Acc* x = rows.row(row);
      for (int k = 0; k < K; ++k) {
        group.store(out + row * span.width, k, f(rows.load(x, k) - mu[k]));
      }
    }
  });
}

template <typename Acc, Activation A>
void activate(const RowChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out) {
  apply(chunk, mean, span, out, [](Vector<Acc> z) { return discfused::activate<A>(z); });
}

template <typename Acc, Activation A>
void differentiate(const RowChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out) {
  const Vector<Acc> one = Vector<Acc>{} + Acc(1);
  apply(chunk, mean, span, out, [&](Vector<Acc> z) { return discfused::pull_back<A>(z, one); });
}

}  // namespace discfused::cpu::DISCFUSED_ISA
