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
  int64_t column;  // the first one, in the block

  int64_t at(int k) const { return column + k * kLanes<Acc>; }

  Vector<Acc> load(const Acc* row, int k) const { return DISCFUSED_ISA::load<Acc>(row + at(k)); }
  void store(Acc* row, int k, Vector<Acc> v) const { DISCFUSED_ISA::store(row + at(k), v); }

  // What a run adds to its row of the table
  void put(const Table<Acc>& table, const Run& run, const Vector<Acc> (&sums)[K]) const {
    Acc* row = table.data + run.slot * table.stride;
    for (int k = 0; k < K; ++k) store(row, k, run.opens ? sums[k] : load(row, k) + sums[k]);
  }
};

template <typename Acc, typename Body>
inline void for_each_group(Span span, Body body) {
  constexpr int64_t kStep = 4 * kLanes<Acc>;
  int64_t column = 0;
  for (; column + kStep <= span.width; column += kStep) body(Group<Acc, 4>{column});
  for (; column < span.width; column += kLanes<Acc>) body(Group<Acc, 1>{column});
}

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

// ---------------------------------------------------------------- backward

// The gradient of the table, G, for a group of columns.
template <typename Acc, int K>
class GradientRows {
 public:
  GradientRows(Group<Acc, K> group, const Pull<Acc>& pull, const Table<const Acc>& table)
      : group_(group), slot_offset_(pull.slot_offset), table_(table) {
    for (int k = 0; k < K; ++k) {
      outer_[k] = group.load(pull.outer, k);
      constant_[k] = group.load(pull.constant, k);
      slope_[k] = group.load(pull.slope, k);
    }
  }

  void load(int64_t slot, Vector<Acc> (&G)[K]) const {
    const Acc* row = table_.data + slot * table_.stride;
    for (int k = 0; k < K; ++k) {
      G[k] = table_gradient(
          outer_[k], constant_[k], slope_[k], group_.load(row, k), slot_offset_[slot]);
    }
  }

 private:
  Group<Acc, K> group_;
  const Acc* slot_offset_;
  const Table<const Acc>& table_;
  Vector<Acc> outer_[K], constant_[K], slope_[K];
};

// How vectors of d loss / d features reach a row of the batch: where all their columns exist, where
// they go past the caches, and where only the first `columns` exist.
struct Plain {
  template <typename T, typename V>
  static void put(T* to, V value, int64_t) {
    std::memcpy(to, &value, sizeof value);
  }
};

struct Streamed {
  template <typename T, typename V>
  static void put(T* to, V value, int64_t) {
    stream(to, value);
  }
};

struct Partial {
  template <typename T, typename V>
  static void put(T* to, V value, int64_t columns) {
    constexpr int64_t kCount = sizeof(V) / sizeof(T);
    if (columns >= kCount) return Plain::put(to, value, columns);
    T elements[kCount];
    std::memcpy(elements, &value, sizeof value);
    for (int64_t j = 0; j < columns; ++j) to[j] = elements[j];
  }
};

// body(how the vectors of the group are stored)
template <typename Acc, int K, typename Body>
inline void with_store(Group<Acc, K> group, Span span, const Target& target, Body body) {
  if (group.at(K) > span.columns) {
    body(Partial());
  } else if (target.stream) {
    body(Streamed());
  } else {
    body(Plain());
  }
}

// One group of columns of d loss / d features.
template <typename Acc, typename T, int K>
class GradientColumns {
 public:
  GradientColumns(
      Group<Acc, K> group, const Acc* mean, const Acc* shift, Span span, const Target& target)
      : group_(group),
        columns_(span.columns),
        target_(static_cast<T*>(target.data)),
        row_stride_(target.row_stride) {
    for (int k = 0; k < K; ++k) {
      mean_[k] = group.load(mean, k);
      shift_[k] = group.load(shift, k);
    }
  }

  // Row `to` of the batch, from its features x, its weight and d loss / d activations.
  template <Activation A, typename Store>
  void write(Store, const Acc* x, Acc weight, const Vector<Acc> (&grad)[K], int64_t to) const {
    T* row = target_ + to * row_stride_;
    for (int k = 0; k < K; ++k) {
      const Vector<Acc> z = group_.load(x, k) - mean_[k];
      const Vector<Acc> dx = discfused::pull_back<A>(z, grad[k]) - weight * shift_[k];
      Store::put(row + group_.at(k), narrow<T>(dx), columns_ - group_.at(k));
    }
  }

 private:
  Group<Acc, K> group_;
  int64_t columns_;
  T* target_;
  int64_t row_stride_;
  Vector<Acc> mean_[K], shift_[K];
};

template <typename Acc, Activation A, typename T>
void write(
    const PackedChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Runs<Acc>& runs,
    const Pull<Acc>& pull, Span span, const Table<const Acc>& table, const Target& target) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientRows<Acc, K> gradient_rows(group, pull, table);
    const GradientColumns<Acc, T, K> columns(group, mean, shift, span, target);
    with_store(group, span, target, [&](auto store) {
      const PackedChunk<Acc> rows = chunk;  // a copy that no store can change
      Vector<Acc> G[K], grad[K];
      for (const Run* run = runs.begin; run != runs.end; ++run) {
        gradient_rows.load(run->slot, G);
        for (int64_t row = run->begin, end = run->end; row < end; ++row) {
          const Acc weight = rows.weight[row];
          for (int k = 0; k < K; ++k) grad[k] = weight * G[k];
          columns.template write<A>(
              store, rows.data + row * span.width, weight, grad, rows.order[row]);
        }
      }
    });
  });
  if (target.stream) fence_streams();
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
          group.store(g, k, group.load(g, k) + runs.entry_weight[entry] * G[k]);
        }
      }
    }
  });
}

template <typename Acc, Activation A, typename T>
void write_spread(
    const PackedChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Acc* grads, Span span,
    const Target& target) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientColumns<Acc, T, K> columns(group, mean, shift, span, target);
    with_store(group, span, target, [&](auto store) {
      Vector<Acc> grad[K];
      for (int64_t row = 0; row < chunk.rows; ++row) {
        const int64_t at = row * span.width;
        for (int k = 0; k < K; ++k) grad[k] = group.load(grads + at, k);
        columns.template write<A>(
            store, chunk.data + at, chunk.weight[row], grad, chunk.order[row]);
      }
    });
  });
  if (target.stream) fence_streams();
}

}  // namespace discfused::cpu::DISCFUSED_ISA
