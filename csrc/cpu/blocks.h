// The batch as blocks of columns, each packed chunk by chunk into scratch memory of its thread.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/kernels.h"
#include "cpu/row_plan.h"
#include "cpu/saved_blocks.h"

namespace discfused::cpu {

// What a block of a batch may take and still be found in the second-level cache by a second look.
constexpr int64_t kResidentBytes = 1 << 20;

// Fewer elements than this are not worth another thread.
constexpr int64_t kGrain = 1 << 14;

template <typename Acc>
Span block_span(int64_t block, int64_t columns) {
  constexpr int64_t kPad = kAlignment / sizeof(Acc);
  const int64_t here = std::min(columns - block * kBlockColumns<Acc>, kBlockColumns<Acc>);
  return {here, (here + kPad - 1) / kPad * kPad};
}

// All columns of the blocks [begin, end).
struct Range {
  int64_t first, count;
};

template <typename Acc>
Range block_range(int64_t begin, int64_t end, int64_t columns) {
  const int64_t first = begin * kBlockColumns<Acc>;
  return {first, std::min(end * kBlockColumns<Acc>, columns) - first};
}

// Runs body(first block, last block) on all threads. `rows` is the height of a block.
template <typename Acc, typename Body>
void parallel_blocks(int64_t columns, int64_t rows, const Body& body) {
  const int64_t cost = std::max<int64_t>(1, rows * kBlockColumns<Acc>);
  at::parallel_for(0, block_count<Acc>(columns), std::max<int64_t>(1, kGrain / cost), body);
}

// Uninitialised memory that starts on a cache line.
template <typename Acc>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(
            static_cast<Acc*>(::operator new(count * sizeof(Acc), std::align_val_t{kAlignment}))) {}

  Acc* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(Acc* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<Acc, Free> memory_;
};

// One number per column of a block, aligned and padded for the kernels.
template <typename Acc>
struct alignas(kAlignment) ColumnValues {
  Acc values[kBlockColumns<Acc>];

  void fill(Acc value) { std::fill(std::begin(values), std::end(values), value); }
  // Columns that do not exist get 0.
  void read(const Acc* from, Span span) {
    std::fill(std::copy(from, from + span.columns, values), std::end(values), Acc(0));
  }
  void write(Acc* to, Span span) const { std::copy(values, values + span.columns, to); }
  Acc& operator[](int64_t column) { return values[column]; }
  operator Acc*() { return values; }
  operator const Acc*() const { return values; }
};

struct Features {
  explicit Features(const at::Tensor& features)
      : data(static_cast<const char*>(features.const_data_ptr())),
        N(features.size(0)),
        D(features.size(1)),
        row_stride(features.stride(0)),
        column_stride(features.stride(1)),
        element_size(static_cast<int64_t>(features.element_size())),
        type(type_of(features.scalar_type())) {}

  Source from_column(int64_t column) const {
    return {data + column * column_stride * element_size, row_stride, column_stride};
  }

  const char* data;
  int64_t N, D, row_stride, column_stride, element_size;
  FeatureType type;

 private:
  static FeatureType type_of(at::ScalarType dtype) {
    if (dtype == at::kHalf) return kHalf;
    if (dtype == at::kBFloat16) return kBFloat16;
    TORCH_CHECK_TYPE(
        dtype == at::kFloat || dtype == at::kDouble, "features has dtype ", dtype,
        ", expected float16, bfloat16, float32 or float64");
    return kAccumulated;
  }
};

// The rows of a batch that count, a block of columns at a time.
template <typename Acc>
class PackedRows {
 public:
  using Chunk = typename RowPlan<Acc>::Chunk;

  PackedRows(const Features& features, const RowPlan<Acc>& plan)
      : features_(features),
        plan_(plan),
        fits_(plan.rows * kBlockColumns<Acc> * int64_t{sizeof(Acc)} <= kResidentBytes),
        memory_((fits_ ? plan.rows : kChunkRows) * kBlockColumns<Acc>) {}

  void start(int64_t block, uint64_t* signs) {
    source_ = features_.from_column(block * kBlockColumns<Acc>);
    span_ = block_span<Acc>(block, features_.D);
    signs_ = signs;
    packed_ = false;
  }

  Span span() const { return span_; }

  // One look at the block: body(chunk, its packed rows). The next look finds them packed, unless
  // the batch is too tall for the cache: to read a copy would take as long as to pack it again.
  template <typename Body>
  void for_each_chunk(const Body& body) {
    for_each([&](const Chunk& chunk, PackedChunk<Acc> rows, int64_t first) {
      Acc* packed = memory_.get() + (fits_ ? first * span_.width : 0);
      if (!packed_) {
        kernels<Acc>().pack[features_.type](source_, rows.order, rows.rows, span_, packed);
      }
      rows.data = packed;
      body(chunk, rows);
    });
    packed_ = fits_;
  }

  // Without a look at the features: the signs tell enough.
  template <typename Body>
  void for_each_saved_chunk(const Body& body) const {
    for_each([&](const Chunk& chunk, const PackedChunk<Acc>& rows, int64_t) { body(chunk, rows); });
  }

 private:
  template <typename Body>
  void for_each(const Body& body) const {
    int64_t first = 0;
    for (const Chunk& chunk : plan_.chunks) {
      const Acc* weight = plan_.weight.data() + first;
      const int64_t* order = plan_.order.data() + first;
      uint64_t* signs = signs_ ? signs_ + first : nullptr;
      body(chunk, PackedChunk<Acc>{nullptr, weight, order, chunk.rows, signs}, first);
      first += chunk.rows;
    }
  }

  const Features& features_;
  const RowPlan<Acc>& plan_;
  bool fits_;
  Scratch<Acc> memory_;
  Source source_{};
  Span span_{};
  uint64_t* signs_ = nullptr;
  bool packed_ = false;
};

// The class histogram of a block of columns, in scratch memory or where it is saved. What is not
// saved is made again in backward.
template <typename Acc>
class BlockHistogram {
 public:
  using Chunk = typename RowPlan<Acc>::Chunk;

  // With slopes F_cj = sum_i m_ic phi'(x_ij - mean_j) as well.
  BlockHistogram(
      const Features& features, const RowPlan<Acc>& plan, int activation, bool with_slopes)
      : rows_(features, plan),
        activation_(activation),
        with_slopes_(with_slopes),
        one_entry_per_row_(plan.one_entry_per_row),
        table_(plan.slots.size() * kBlockColumns<Acc>),
        slopes_(with_slopes ? plan.slots.size() * kBlockColumns<Acc> : 0),
        applied_(one_entry_per_row_ ? 0 : kChunkRows * kBlockColumns<Acc>) {}

  // A place is for hard labels and relu.
  void start(int64_t block, typename SavedBlocks<Acc>::Place place = {}) {
    rows_.start(block, place.signs);
    saved_table_ = place.table;
  }

  PackedRows<Acc>& rows() { return rows_; }
  Span span() const { return rows_.span(); }
  Table<Acc> table() const { return {saved_table_ ? saved_table_ : table_.get(), span().width}; }
  Table<Acc> slopes() const { return {slopes_.get(), span().width}; }

  // Forward: the table, the magnitude, and the mean, from which features are measured if it is
  // asked for.
  void fill(Acc total, Acc* mean_of_columns, ColumnValues<Acc>& magnitude) {
    ColumnValues<Acc> mean, sum;
    mean.fill(0);
    sum.fill(0);
    magnitude.fill(0);
    const auto add_moments = [&](const PackedChunk<Acc>& packed) {
      kernel_.moments[activation_](packed, span(), sum, magnitude);
    };
    if (mean_of_columns) {
      rows_.for_each_chunk(
          [&](const Chunk&, const PackedChunk<Acc>& packed) { add_moments(packed); });
      for (int64_t j = 0; j < span().width; ++j) mean[j] = sum[j] / total;
      mean.write(mean_of_columns, span());
      fill(mean);
    } else {
      rows_.for_each_chunk([&](const Chunk& chunk, const PackedChunk<Acc>& packed) {
        add_moments(packed);
        gather(chunk, packed, mean);
      });
    }
  }

  // Backward: the table alone.
  void fill(const ColumnValues<Acc>& mean) {
    rows_.for_each_chunk(
        [&](const Chunk& chunk, const PackedChunk<Acc>& packed) { gather(chunk, packed, mean); });
  }

 private:
  void gather(
      const Chunk& chunk, const PackedChunk<Acc>& packed, const ColumnValues<Acc>& mean) const {
    const Runs<Acc> runs = chunk.view();
    if (packed.signs) {
      kernel_.gather_signs(packed, mean, runs, span(), table());
      return;
    }
    if (one_entry_per_row_ && with_slopes_) {
      kernel_.gather_slopes[activation_](packed, mean, runs, span(), table(), slopes());
      return;
    }
    if (one_entry_per_row_) {
      kernel_.gather[activation_](packed, mean, runs, span(), table());
      return;
    }
    const PackedChunk<Acc> applied{
        applied_.get(), packed.weight, packed.order, packed.rows, nullptr};
    kernel_.activate[activation_](packed, mean, span(), applied_.get());
    kernel_.gather_plain(applied, mean, runs, span(), table());
    if (!with_slopes_) return;
    kernel_.differentiate[activation_](packed, mean, span(), applied_.get());
    kernel_.gather_plain(applied, mean, runs, span(), slopes());
  }

  const Kernels<Acc>& kernel_ = kernels<Acc>();
  PackedRows<Acc> rows_;
  int activation_;
  bool with_slopes_, one_entry_per_row_;
  Scratch<Acc> table_, slopes_, applied_;
  Acc* saved_table_ = nullptr;
};

}  // namespace discfused::cpu
