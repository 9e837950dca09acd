// What backward needs to know about a block before it can write. Included by kernels_impl.h only.
#pragma once

#include "cpu/slopes.h"

namespace discfused::cpu::DISCFUSED_ISA {

// Correlations of a group of columns.
template <typename Acc, int K>
class GroupCorrelations {
 public:
  explicit GroupCorrelations(Group<Acc, K> group) : group_(group) {}

  void project(Acc coef, const Vector<Acc> (&H)[K]) {
    for (int k = 0; k < K; ++k) projection_[k] += coef * H[k];
  }

  void correlate(Acc coef, const Vector<Acc> (&H)[K], const Vector<Acc> (&F)[K]) {
    for (int k = 0; k < K; ++k) {
      slope_[k] += F[k];
      slope_table_[k] += F[k] * H[k];
      slope_coef_[k] += coef * F[k];
    }
  }

  void add_to(const Correlations<Acc>& sums) const {
    add(projection_, sums.projection);
    add(slope_, sums.slope);
    add(slope_table_, sums.slope_table);
    add(slope_coef_, sums.slope_coef);
  }

 private:
  void add(const Vector<Acc> (&values)[K], Acc* to) const {
    for (int k = 0; k < K; ++k) group_.store(to, k, group_.load(to, k) + values[k]);
  }

  Group<Acc, K> group_;
  Vector<Acc> projection_[K] = {}, slope_[K] = {}, slope_table_[K] = {}, slope_coef_[K] = {};
};

template <typename Acc>
void correlate_signs(
    const RowChunk<Acc>& chunk, const Runs<Acc>& runs, const Table<const Acc>& table,
    const Acc* slot_coef, Acc scale, Span span, const Correlations<Acc>& correlations) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    const SlopeOfSigns<Acc, K> slope(group, chunk.signs);
    const Acc* weights = chunk.weight;
    GroupCorrelations<Acc, K> sums(group);
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      Vector<Acc> H[K], F[K] = {};
      for (int64_t row = run->begin, end = run->end; row < end; ++row) {
        const Vector<Acc> weight = Vector<Acc>{} + weights[row] * scale;
        const auto signs = slope.row(row);
        for (int k = 0; k < K; ++k) F[k] += slope.pull_back(signs, k, weight);
      }
      const Acc coef = slot_coef[run->slot];
      for (int k = 0; k < K; ++k) H[k] = group.load(table.data + run->slot * table.stride, k);
      sums.correlate(coef, H, F);
      if (run->opens) sums.project(coef, H);  // once for each slot
    }
    sums.add_to(correlations);
  });
}

template <typename Acc>
void correlate(
    const Table<const Acc>& table, const Table<const Acc>& slopes, int64_t slots,
    const Acc* slot_coef, Acc scale, Span span, const Correlations<Acc>& correlations) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    // Two levels of sums: kChunkRows slots, then the rest.
    for (int64_t first = 0; first < slots; first += kChunkRows) {
      const int64_t last = first + kChunkRows < slots ? first + kChunkRows : slots;
      GroupCorrelations<Acc, K> sums(group);
      for (int64_t slot = first; slot < last; ++slot) {
        Vector<Acc> H[K], F[K];
        for (int k = 0; k < K; ++k) H[k] = group.load(table.data + slot * table.stride, k);
        sums.project(slot_coef[slot], H);
        if (!slopes.data) continue;
        for (int k = 0; k < K; ++k) {
          F[k] = scale * group.load(slopes.data + slot * slopes.stride, k);
        }
        sums.correlate(slot_coef[slot], H, F);
      }
      sums.add_to(correlations);
    }
  });
}

}  // namespace discfused::cpu::DISCFUSED_ISA
