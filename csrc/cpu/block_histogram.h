// The class histogram of a block of columns.
#pragma once

#include <cstdint>

#include "cpu/blocks.h"
#include "cpu/kernels.h"
#include "cpu/row_plan.h"
#include "cpu/saved_blocks.h"

namespace discfused::cpu {

// How the slope phi' is kept for backward: not at all, as the signs of all rows (relu with hard
// labels), or as a table F_cj = sum_i m_ic phi'(x_ij - mean_j).
enum class Slope { kNone, kSigns, kTable };

// The class histogram of a block of columns, in scratch memory or where it is saved. What is not
// saved is made again in backward.
template <typename Acc>
class BlockHistogram {
 public:
  using Chunk = typename RowPlan<Acc>::Chunk;

  BlockHistogram(
      const Features& features, const RowPlan<Acc>& plan, int activation,
      Slope slope = Slope::kNone)
      : rows_(features, plan),
        activation_(activation),
        slope_(slope),
        one_entry_per_row_(plan.one_entry_per_row),
        table_(plan.slots.size() * kBlockColumns<Acc>),
        slopes_(slope == Slope::kTable ? plan.slots.size() * kBlockColumns<Acc> : 0),
        signs_(slope == Slope::kSigns ? plan.rows : 0),
        applied_(one_entry_per_row_ ? 0 : kChunkRows * kBlockColumns<Acc>) {}

  // A place is for hard labels and relu.
  void start(int64_t block, typename SavedBlocks<Acc>::Place place = {}) {
    uint64_t* own = slope_ == Slope::kSigns ? signs_.get() : nullptr;
    rows_.start(block, place.signs ? place.signs : own);
    saved_table_ = place.table;
  }

  BlockRows<Acc>& rows() { return rows_; }
  Span span() const { return rows_.span(); }
  Table<Acc> table() const { return {saved_table_ ? saved_table_ : table_.get(), span().width}; }
  Table<Acc> slopes() const {
    return {slope_ == Slope::kTable ? slopes_.get() : nullptr, span().width};
  }

  // The table, and its sum over slots unless `mass` is null. `look` tells whether another follows.
  void fill(const ColumnValues<Acc>& mean, Acc* mass, Look look) {
    rows_.for_each_chunk(
        one_entry_per_row_ ? look : Look::kPacked,
        [&](const Chunk& chunk, const RowChunk<Acc>& rows) { gather(chunk, rows, mean, mass); });
  }

 private:
  void gather(
      const Chunk& chunk, const RowChunk<Acc>& rows, const ColumnValues<Acc>& mean,
      Acc* mass) const {
    const Runs<Acc> runs = chunk.view();
    const FeatureType type = rows.from.type;
    if (rows.signs) {
      kernel_.gather_signs[type](rows, mean, runs, span(), table(), mass);
      return;
    }
    if (one_entry_per_row_ && slope_ == Slope::kTable) {
      kernel_.gather_slopes[activation_](rows, mean, runs, span(), table(), slopes());
      return;
    }
    if (one_entry_per_row_) {
      kernel_.gather[activation_][type](rows, mean, runs, span(), table(), mass);
      return;
    }
    RowChunk<Acc> applied = rows;
    applied.from = rows_.packed_at(applied_.get());
    kernel_.activate[activation_](rows, mean, span(), applied_.get());
    kernel_.gather_entries(applied, runs, span(), table(), mass);
    if (slope_ == Slope::kNone) return;
    kernel_.differentiate[activation_](rows, mean, span(), applied_.get());
    kernel_.gather_entries(applied, runs, span(), slopes(), nullptr);
  }

  const Kernels<Acc>& kernel_ = kernels<Acc>();
  BlockRows<Acc> rows_;
  int activation_;
  Slope slope_;
  bool one_entry_per_row_;
  Scratch<Acc> table_, slopes_;
  Scratch<uint64_t> signs_;
  Scratch<Acc> applied_;
  Acc* saved_table_ = nullptr;
};

}  // namespace discfused::cpu
