// The batch as blocks of columns, whose rows are read where they are or packed into scratch memory.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/row_plan.h"

namespace discfused::cpu {

// What a block of a batch may take and still be found in the second-level cache by a second look.
constexpr int64_t kResidentBytes = 1 << 19;

// Fewer elements than this are not worth another thread.
constexpr int64_t kGrain = 1 << 14;

template <typename Acc>
Span block_span(int64_t block, int64_t columns) {
  constexpr int64_t kPad = kAlignment / sizeof(Acc);
  const int64_t here = std::min(columns - block * kBlockColumns<Acc>, kBlockColumns<Acc>);
  return {here, (here + kPad - 1) / kPad * kPad};
}

// Hands out blocks to threads: to each one its own, which it finds in its cache again in the next
// call, and then what the others have not come to.
class BlockQueue {
 public:
  BlockQueue(int64_t blocks, int64_t threads) : blocks_(blocks), next_(threads) {
    for (int64_t thread = 0; thread < threads; ++thread) next_[thread] = first(thread);
  }

  template <typename Body>
  void for_each(int64_t thread, const Body& body) {
    const int64_t threads = static_cast<int64_t>(next_.size());
    for (int64_t k = 0; k < threads; ++k) {
      const int64_t owner = (thread + k) % threads;
      const int64_t last = first(owner + 1);
      for (int64_t block; (block = next_[owner].fetch_add(1, std::memory_order_relaxed)) < last;) {
        body(block);
      }
    }
  }

 private:
  int64_t first(int64_t thread) const {
    return thread * blocks_ / static_cast<int64_t>(next_.size());
  }

  int64_t blocks_;
  std::vector<std::atomic<int64_t>> next_;  // of the blocks of each thread
};

// Runs body(for_each_block) on all threads. `rows` is the height of a block.
template <typename Acc, typename Body>
void parallel_blocks(int64_t columns, int64_t rows, const Body& body) {
  const int64_t blocks = block_count<Acc>(columns);
  const int64_t cost = std::max<int64_t>(1, rows * kBlockColumns<Acc>);
  const int64_t least = std::max<int64_t>(1, kGrain / cost);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), (blocks + least - 1) / least);
  BlockQueue queue(blocks, threads);
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    body([&](const auto& each) { queue.for_each(thread, each); });
  });
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

  Source from_column(int64_t column, const std::vector<int64_t>& order) const {
    const char* start = data + column * column_stride * element_size;
    return {start, type, row_stride, order.data(), static_cast<int64_t>(order.size())};
  }

  // Blocks, from the first on, whose rows are whole vectors.
  template <typename Acc>
  int64_t whole_blocks() const {
    if (column_stride != 1) return 0;
    constexpr int64_t kVector = kAlignment / sizeof(Acc);
    return D % kVector == 0 ? block_count<Acc>(D) : D / kBlockColumns<Acc>;
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

template <typename Acc>
bool fits_cache(const RowPlan<Acc>& plan) {
  return plan.rows * kBlockColumns<Acc> * int64_t{sizeof(Acc)} <= kResidentBytes;
}

// Calls body(chunk of the plan, its rows in `source`, how many rows come before).
template <typename Acc, typename Body>
void for_each_chunk(const RowPlan<Acc>& plan, Source source, const Body& body) {
  int64_t first = 0;
  for (const auto& chunk : plan.chunks) {
    const Acc* weight = plan.weight.data() + first;
    body(chunk, RowChunk<Acc>{source, weight, source.order, chunk.rows, nullptr, nullptr}, first);
    source.order += chunk.rows;
    source.rows -= chunk.rows;
    first += chunk.rows;
  }
}

// Whether a look at the rows takes them where they are; packs them, because it needs several
// kernels or another look follows; or has the kernel of moments pack them on the way.
enum class Look { kInPlace, kPacked, kMoments };

// The rows of a batch that count, a block of columns at a time.
template <typename Acc>
class BlockRows {
 public:
  using Chunk = typename RowPlan<Acc>::Chunk;

  BlockRows(const Features& features, const RowPlan<Acc>& plan)
      : features_(features),
        plan_(plan),
        fits_(fits_cache(plan)),
        memory_((fits_ ? plan.rows : kChunkRows) * kBlockColumns<Acc>) {
    std::iota(std::begin(as_packed_), std::end(as_packed_), 0);
  }

  void start(int64_t block, uint64_t* signs) {
    source_ = features_.from_column(block * kBlockColumns<Acc>, plan_.order);
    span_ = block_span<Acc>(block, features_.D);
    whole_ = block < features_.whole_blocks<Acc>();
    signs_ = signs;
    packed_ = false;
  }

  Span span() const { return span_; }

  // One look at the block: body(chunk, its rows). Rows that are no whole vectors are always packed.
  // The next look finds packed rows again, unless the batch is too tall for the cache: to read a
  // copy would take as long as to read them again.
  template <typename Body>
  void for_each_chunk(Look look, const Body& body) {
    const bool packs = !packed_ && (look == Look::kPacked || !whole_);
    const bool copies = !packed_ && !packs && look == Look::kMoments && fits_;
    for_each([&](const Chunk& chunk, RowChunk<Acc> rows, int64_t first) {
      Acc* packed = memory_.get() + (fits_ ? first * span_.width : 0);
      if (packs) {
        kernels<Acc>().pack[features_.type](
            rows.from, features_.column_stride, rows.rows, span_, packed);
      }
      if (packs || packed_) rows.from = packed_at(packed);
      if (copies) rows.copy = packed;
      body(chunk, rows);
    });
    packed_ = packed_ || copies || (packs && fits_);
  }

  // Without a look at the features: the signs tell enough.
  template <typename Body>
  void for_each_signed_chunk(const Body& body) const {
    for_each([&](const Chunk& chunk, const RowChunk<Acc>& rows, int64_t) { body(chunk, rows); });
  }

  Source packed_at(const Acc* chunk) const {
    return {chunk, kAccumulated, span_.width, as_packed_, kChunkRows};
  }

 private:
  template <typename Body>
  void for_each(const Body& body) const {
    cpu::for_each_chunk(plan_, source_, [&](const Chunk& chunk, RowChunk<Acc> rows, int64_t first) {
      rows.signs = signs_ ? signs_ + first : nullptr;
      body(chunk, rows, first);
    });
  }

  const Features& features_;
  const RowPlan<Acc>& plan_;
  bool fits_;
  Scratch<Acc> memory_;
  int64_t as_packed_[kChunkRows];  // 0, 1, 2 ...
  Source source_{};
  Span span_{};
  uint64_t* signs_ = nullptr;
  bool whole_ = false;
  bool packed_ = false;
};

}  // namespace discfused::cpu
