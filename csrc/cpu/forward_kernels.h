// The kernels that read the rows of a block: packing, and forward. Included by kernels_impl.h only.
#pragma once

#include "cpu/group.h"

namespace discfused::cpu::DISCFUSED_ISA {

// ---------------------------------------------------------------- between features and blocks

template <typename Acc, typename T>
void pack(const Source& source, const int64_t* order, int64_t rows, Span span, Acc* packed) {
  const T* data = static_cast<const T*>(source.data);
  if (source.column_stride == 1 && span.columns == span.width) {
    for_each_group<Acc>(span, [&](auto group) {
      for (int64_t row = 0; row < rows; ++row) {
        const T* from = data + order[row] * source.row_stride;
        for (int k = 0; k < group.kVectors; ++k) {
          group.store(packed + row * span.width, k, widen(from + group.at(k)));
        }
      }
    });
    return;
  }
  for (int64_t row = 0; row < rows; ++row, packed += span.width) {
    const T* from = data + order[row] * source.row_stride;
    int64_t column = 0;
    if (source.column_stride == 1) {
      for (; column + kLanes<Acc> <= span.columns; column += kLanes<Acc>) {
        store(packed + column, widen(from + column));
      }
    }
    for (; column < span.width; column += kLanes<Acc>) {
      T values[kLanes<Acc>] = {};
      for (int64_t lane = 0; lane < kLanes<Acc> && column + lane < span.columns; ++lane) {
        values[lane] = from[(column + lane) * source.column_stride];
      }
      store(packed + column, widen(values));
    }
  }
}

// ---------------------------------------------------------------- forward

template <typename Acc, Activation A>
void moments(const PackedChunk<Acc>& chunk, Span span, Acc* sum, Acc* magnitude) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> sums[K] = {}, magnitudes[K] = {};
    for (int64_t row = 0; row < chunk.rows; ++row) {
      for (int k = 0; k < K; ++k) {
        const Vector<Acc> x = group.load(chunk.data + row * span.width, k);
        sums[k] += chunk.weight[row] * x;
        magnitudes[k] += chunk.weight[row] * size_of<A>(x);
      }
    }
    for (int k = 0; k < K; ++k) {
      group.store(sum, k, group.load(sum, k) + sums[k]);
      group.store(magnitude, k, group.load(magnitude, k) + magnitudes[k]);
    }
  });
}

// How a packed row becomes activations.
template <Activation A>
struct Centered {
  template <typename V>
  V operator()(V x, V mean) const {
    return discfused::activate<A>(x - mean);
  }
};

struct AsItIs {
  template <typename V>
  V operator()(V a, V) const {
    return a;
  }
};

template <typename Acc, typename Phi>
void gather(
    const PackedChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t entry = run->begin; entry < run->end; ++entry) {
        const Acc* row = chunk.data + runs.entry_row[entry] * span.width;
        for (int k = 0; k < K; ++k) {
          sums[k] += runs.entry_weight[entry] * Phi()(group.load(row, k), mu[k]);
        }
      }
      group.put(table, *run, sums);
    }
  });
}

template <typename Acc>
void gather_signs(
    const PackedChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table) {
  uint64_t* signs = chunk.signs;
  for (int64_t row = 0; row < chunk.rows; ++row) signs[row] = 0;
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t row = run->begin; row < run->end; ++row) {
        uint64_t bits = 0;
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> z = group.load(chunk.data + row * span.width, k) - mu[k];
          sums[k] += chunk.weight[row] * discfused::activate<Activation::kRelu>(z);
          bits |= lane_bits<Acc>(!(z <= Vector<Acc>{})) << group.at(k);
        }
        signs[row] |= bits;
      }
      group.put(table, *run, sums);
    }
  });
}

template <typename Acc, Activation A>
void gather_slopes(
    const PackedChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
    const Table<Acc>& table, const Table<Acc>& slopes) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {}, slope_sums[K] = {};
      for (int64_t entry = run->begin; entry < run->end; ++entry) {
        const Acc* row = chunk.data + runs.entry_row[entry] * span.width;
        const Vector<Acc> weight = Vector<Acc>{} + runs.entry_weight[entry];
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> z = group.load(row, k) - mu[k];
          sums[k] += weight * discfused::activate<A>(z);
          slope_sums[k] += discfused::pull_back<A>(z, weight);
        }
      }
      group.put(table, *run, sums);
      group.put(slopes, *run, slope_sums);
    }
  });
}

template <typename Acc, typename Function>
inline void apply(const PackedChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out, Function f) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load(mean, k);
    for (int64_t row = 0; row < chunk.rows; ++row) {
      const int64_t at = row * span.width;
      for (int k = 0; k < K; ++k) {
        group.store(out + at, k, f(group.load(chunk.data + at, k) - mu[k]));
      }
    }
  });
}

template <typename Acc, Activation A>
void activate(const PackedChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out) {
  apply(chunk, mean, span, out, [](Vector<Acc> z) { return discfused::activate<A>(z); });
}

template <typename Acc, Activation A>
void differentiate(const PackedChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out) {
  const Vector<Acc> one = Vector<Acc>{} + Acc(1);
  apply(chunk, mean, span, out, [&](Vector<Acc> z) { return discfused::pull_back<A>(z, one); });
}

}  // namespace discfused::cpu::DISCFUSED_ISA
