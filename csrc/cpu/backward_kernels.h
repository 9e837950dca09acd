// The kernels that write d loss / d features. Included by kernels_impl.h only.
#pragma once

#include "cpu/slopes.h"

namespace discfused::cpu::DISCFUSED_ISA {

// The gradient of the table, G, for a group of columns.
template <typename Acc, int K>
class GradientRows {
 public:
  GradientRows(Group<Acc, K> group, const Pull<Acc>& pull, const Table<const Acc>& table)
      : table_(table.data + group.column), stride_(table.stride), slot_offset_(pull.slot_offset) {
    for (int k = 0; k < K; ++k) {
      outer_[k] = group.load(pull.outer, k);
      constant_[k] = group.load(pull.constant, k);
      slope_[k] = group.load(pull.slope, k);
    }
  }

  void load(int64_t slot, Vector<Acc> (&G)[K]) const {
    const Acc* row = table_ + slot * stride_;
    const Acc offset = slot_offset_[slot];
    for (int k = 0; k < K; ++k) {
      const Vector<Acc> H = DISCFUSED_ISA::load<Acc>(row + k * kLanes<Acc>);
      G[k] = table_gradient(outer_[k], constant_[k], slope_[k], H, offset);
    }
  }

 private:
  const Acc* table_;  // from the group's first column on
  int64_t stride_;
  const Acc* slot_offset_;
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
  GradientColumns(Group<Acc, K> group, const Acc* shift, Span span, const Target& target)
      : columns_(span.columns - group.column),
        target_(static_cast<T*>(target.data) + group.column),
        row_stride_(target.row_stride) {
    for (int k = 0; k < K; ++k) shift_[k] = group.load(shift, k);
  }

  // Row `to` of the batch from packed row `row`, its weight and d loss / d activations.
  template <typename Store, typename Slope>
  void write(
      Store, const Slope& slope, int64_t row, Acc weight, const Vector<Acc> (&grad)[K],
      int64_t to) const {
    T* out = target_ + to * row_stride_;
    const auto z = slope.row(row);
    for (int k = 0; k < K; ++k) {
      const Vector<Acc> dx = slope.pull_back(z, k, grad[k]) - weight * shift_[k];
      Store::put(out + k * kLanes<Acc>, narrow<T>(dx), columns_ - k * kLanes<Acc>);
    }
  }

 private:
  int64_t columns_;  // that exist from the group's first one on
  T* target_;
  int64_t row_stride_;
  Vector<Acc> shift_[K];
};

// Every row is one entry. slope_of(group) tells phi'(z).
template <typename Acc, typename T, typename SlopeOf>
inline void write_runs(
    const RowChunk<Acc>& chunk, const Acc* shift, const Runs<Acc>& runs, const Pull<Acc>& pull,
    Span span, const Table<const Acc>& table, const Target& target, SlopeOf slope_of) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientRows<Acc, K> gradient_rows(group, pull, table);
    const GradientColumns<Acc, T, K> columns(group, shift, span, target);
    const auto slope = slope_of(group);
    const Acc* weight = chunk.weight;
    const int64_t* order = chunk.order;
    with_store(group, span, target, [=](auto store) {
      Vector<Acc> G[K], grad[K];
      for (const Run* run = runs.begin; run != runs.end; ++run) {
        gradient_rows.load(run->slot, G);
        for (int64_t row = run->begin, end = run->end; row < end; ++row) {
          const Acc n = weight[row];
          for (int k = 0; k < K; ++k) grad[k] = n * G[k];
          columns.write(store, slope, row, n, grad, order[row]);
        }
      }
    });
  });
}

template <typename Acc, Activation A, typename T>
void write(
    const RowChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Runs<Acc>& runs,
    const Pull<Acc>& pull, Span span, const Table<const Acc>& table, const Target& target) {
  write_runs<Acc, T>(chunk, shift, runs, pull, span, table, target, [&](auto group) {
    return SlopeOfFeatures<Acc, A, group.kVectors>(group, mean, chunk.from);
  });
}

template <typename Acc, typename T>
void write_signs(
    const RowChunk<Acc>& chunk, const Acc* shift, const Runs<Acc>& runs, const Pull<Acc>& pull,
    Span span, const Table<const Acc>& table, const Target& target) {
  write_runs<Acc, T>(chunk, shift, runs, pull, span, table, target, [&](auto group) {
    return SlopeOfSigns<Acc, group.kVectors>(group, chunk.signs);
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
          group.store(g, k, group.load(g, k) + runs.entry_weight[entry] * G[k]);
        }
      }
    }
  });
}

template <typename Acc, Activation A, typename T>
void write_spread(
    const RowChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Acc* grads, Span span,
    const Target& target) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const GradientColumns<Acc, T, K> columns(group, shift, span, target);
    const SlopeOfFeatures<Acc, A, K> slope(group, mean, chunk.from);
    with_store(group, span, target, [&](auto store) {
      Vector<Acc> grad[K];
      for (int64_t row = 0; row < chunk.rows; ++row) {
        const int64_t at = row * span.width;
        for (int k = 0; k < K; ++k) grad[k] = group.load(grads + at, k);
        columns.write(store, slope, row, chunk.weight[row], grad, chunk.order[row]);
      }
    });
  });
}

}  // namespace discfused::cpu::DISCFUSED_ISA
