// The kernels that work on rows of a block: packing, forward and backward.
// Included by kernels_impl.h only.
#pragma once

#include "cpu/vector.h"

namespace discfused::cpu::DISCFUSED_ISA {

// K neighbouring vectors of a row, worked on together so that the processor has independent sums
// to fill its pipelines with.
template <typename Acc, int K>
struct Group {
  static constexpr int kVectors = K;
  int64_t column;   // the first one, in the block
  int64_t columns;  // how many of the block exist

  int64_t at(int k) const { return column + k * kLanes<Acc>; }

  Vector<Acc> load_packed(const Acc* row, int k) const { return load(row + at(k)); }
  void store_packed(Acc* row, int k, Vector<Acc> v) const { store(row + at(k), v); }

  // A row of the table has no padding; only single vectors reach over its end.
  Vector<Acc> load_table(const Acc* row, int k) const {
    return K > 1 ? load(row + at(k)) : load(row + at(k), columns - at(k));
  }
  void store_table(Acc* row, int k, Vector<Acc> v) const {
    K > 1 ? store(row + at(k), v) : store(row + at(k), v, columns - at(k));
  }
};

template <typename Acc, typename Body>
inline void for_each_group(Span span, Body body) {
  constexpr int64_t kStep = 4 * kLanes<Acc>;
  int64_t column = 0;
  for (; column + kStep <= span.columns; column += kStep) {
    body(Group<Acc, 4>{column, span.columns});
  }
  for (; column < span.width; column += kLanes<Acc>) {
    body(Group<Acc, 1>{column, span.columns});
  }
}

// ---------------------------------------------------------------- between features and blocks

// Rows in the order of their classes are far apart: the processor cannot guess the next one.
constexpr int64_t kPrefetchRows = 8;
constexpr int kSecondLevel = 2;  // rows at a power-of-two distance would crowd out the first cache

template <typename Acc, typename T>
void pack(
    const Source& source, const int64_t* order, int64_t rows, int64_t ahead, Span span,
    Acc* packed) {
  const T* data = static_cast<const T*>(source.data);
  for (int64_t row = 0; row < rows; ++row, packed += span.width) {
    const T* from = data + order[row] * source.row_stride;
    T tail[kLanes<Acc>] = {};
    int64_t column = 0;
    if (source.column_stride == 1) {
      const T* next =
          data + order[row + kPrefetchRows < ahead ? row + kPrefetchRows : row] * source.row_stride;
      for (int64_t c = 0; c < span.columns; c += kAlignment / sizeof(T)) {
        __builtin_prefetch(next + c, 0, kSecondLevel);
      }
      for (; column + kLanes<Acc> <= span.columns; column += kLanes<Acc>) {
        store(packed + column, widen(from + column));
      }
    }
    for (; column < span.width; column += kLanes<Acc>) {
      for (int64_t lane = 0; lane < kLanes<Acc>; ++lane) {
        const int64_t c = column + lane;
        tail[lane] = c < span.columns ? from[c * source.column_stride] : T{};
      }
      store(packed + column, widen(tail));
    }
  }
}

template <typename Acc, typename T>
void unpack(
    const Acc* packed, const Acc* weight, const Acc* shift, const int64_t* order, int64_t rows,
    Span span, const Target& target) {
  T* data = static_cast<T*>(target.data);
  const int64_t full = span.columns / kLanes<Acc> * kLanes<Acc>;
  for (int64_t row = 0; row < rows; ++row, packed += span.width) {
    T* to = data + order[row] * target.row_stride;
    const auto value = [&](int64_t column) {
      return narrow<T>(load(packed + column) - weight[row] * load(shift + column));
    };
    if (target.stream) {
      for (int64_t column = 0; column < full; column += kLanes<Acc>) {
        stream(to + column, value(column));
      }
    } else {
      for (int64_t column = 0; column < full; column += kLanes<Acc>) {
        const auto v = value(column);
        std::memcpy(to + column, &v, sizeof v);
      }
    }
    if (full < span.columns) {
      const auto v = value(full);
      std::memcpy(to + full, &v, (span.columns - full) * sizeof(T));
    }
  }
  if (target.stream) fence_streams();
}

// ---------------------------------------------------------------- forward

template <typename Acc, Activation A>
void moments(
    const Acc* packed, const Acc* weight, int64_t rows, Span span, Acc* sum, Acc* magnitude) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> sums[K] = {}, magnitudes[K] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int k = 0; k < K; ++k) {
        const Vector<Acc> x = group.load_packed(packed + row * span.width, k);
        sums[k] += weight[row] * x;
        magnitudes[k] += weight[row] * size_of<A>(x);
      }
    }
    for (int k = 0; k < K; ++k) {
      group.store_packed(sum, k, group.load_packed(sum, k) + sums[k]);
      group.store_packed(magnitude, k, group.load_packed(magnitude, k) + magnitudes[k]);
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

struct AlreadyActivated {
  template <typename V>
  V operator()(V a, V) const {
    return a;
  }
};

template <typename Acc, typename Phi>
void gather(
    const Acc* packed, const Acc* mean, const Runs<Acc>& runs, Span span, const Table<Acc>& table) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load_packed(mean, k);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> sums[K] = {};
      for (int64_t entry = run->begin; entry < run->end; ++entry) {
        const Acc* row = packed + runs.entry_row[entry] * span.width;
        for (int k = 0; k < K; ++k) {
          sums[k] += runs.entry_weight[entry] * Phi()(group.load_packed(row, k), mu[k]);
        }
      }
      Acc* to = table.data + run->slot * table.stride;
      for (int k = 0; k < K; ++k) {
        group.store_table(to, k, run->opens ? sums[k] : sums[k] + group.load_table(to, k));
      }
    }
  });
}

template <typename Acc, Activation A>
void activate(Acc* packed, const Acc* mean, int64_t rows, Span span) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K];
    for (int k = 0; k < K; ++k) mu[k] = group.load_packed(mean, k);
    for (int64_t row = 0; row < rows; ++row) {
      Acc* x = packed + row * span.width;
      for (int k = 0; k < K; ++k) {
        group.store_packed(x, k, Centered<A>()(group.load_packed(x, k), mu[k]));
      }
    }
  });
}

// ---------------------------------------------------------------- backward

// The gradient of the table, G, for a group of columns.
template <typename Acc, int K>
class GradientRows {
 public:
  GradientRows(Group<Acc, K> group, const Pull<Acc>& pull, const Table<const Acc>& table)
      : group_(group), slot_offset_(pull.slot_offset), table_(table) {
    for (int k = 0; k < K; ++k) {
      outer_[k] = group.load_packed(pull.outer, k);
      constant_[k] = group.load_packed(pull.constant, k);
      slope_[k] = group.load_packed(pull.slope, k);
    }
  }

  void load(int32_t slot, Vector<Acc> (&G)[K]) const {
    const Acc* row = table_.data + slot * table_.stride;
    for (int k = 0; k < K; ++k) {
      G[k] = table_gradient(
          outer_[k], constant_[k], slope_[k], group_.load_table(row, k), slot_offset_[slot]);
    }
  }

 private:
  Group<Acc, K> group_;
  const Acc* slot_offset_;
  const Table<const Acc>& table_;
  Vector<Acc> outer_[K], constant_[K], slope_[K];
};

template <typename Acc, Activation A>
void differentiate(
    Acc* packed, const Acc* mean, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
    const Table<const Acc>& table, Acc* sum) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientRows<Acc, K> gradient_rows(group, pull, table);
    Vector<Acc> mu[K], G[K], sums[K] = {};
    for (int k = 0; k < K; ++k) mu[k] = group.load_packed(mean, k);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      gradient_rows.load(run->slot, G);
      for (int64_t entry = run->begin; entry < run->end; ++entry) {
        Acc* row = packed + runs.entry_row[entry] * span.width;
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> x = group.load_packed(row, k) - mu[k];
          const Vector<Acc> grad = discfused::pull_back<A>(x, runs.entry_weight[entry] * G[k]);
          group.store_packed(row, k, grad);
          sums[k] += grad;
        }
      }
    }
    for (int k = 0; k < K; ++k) {
      group.store_packed(sum, k, group.load_packed(sum, k) + sums[k]);
    }
  });
}

template <typename Acc>
void spread(
    Acc* grads, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
    const Table<const Acc>& table) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientRows<Acc, K> gradient_rows(group, pull, table);
    Vector<Acc> G[K];
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      gradient_rows.load(run->slot, G);
      for (int64_t entry = run->begin; entry < run->end; ++entry) {
        Acc* g = grads + runs.entry_row[entry] * span.width;
        for (int k = 0; k < K; ++k) {
          group.store_packed(g, k, group.load_packed(g, k) + runs.entry_weight[entry] * G[k]);
        }
      }
    }
  });
}

template <typename Acc, Activation A>
void pull_back(Acc* packed, const Acc* mean, const Acc* grads, int64_t rows, Span span, Acc* sum) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> mu[K], sums[K] = {};
    for (int k = 0; k < K; ++k) mu[k] = group.load_packed(mean, k);
    for (int64_t row = 0; row < rows; ++row) {
      Acc* x = packed + row * span.width;
      const Acc* g = grads + row * span.width;
      for (int k = 0; k < K; ++k) {
        const Vector<Acc> grad =
            discfused::pull_back<A>(group.load_packed(x, k) - mu[k], group.load_packed(g, k));
        group.store_packed(x, k, grad);
        sums[k] += grad;
      }
    }
    for (int k = 0; k < K; ++k) {
      group.store_packed(sum, k, group.load_packed(sum, k) + sums[k]);
    }
  });
}

}  // namespace discfused::cpu::DISCFUSED_ISA
