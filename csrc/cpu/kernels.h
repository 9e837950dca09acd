// The inner loops of the CPU backend: compiled once per instruction set, chosen at run time.
//
// A kernel sees a block: a few columns of the batch, whose rows have been packed into contiguous
// memory in the accumulation type, in the order of a RowPlan. Rows come in chunks, so that what a
// kernel works on stays in the first-level cache and sums have two levels: the rows of a chunk,
// then the chunks. No ATen here: what library headers define inline must not be compiled for
// another processor.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DISCFUSED_X86 1
#endif

namespace discfused::cpu {

constexpr int64_t kChunkRows = 64;
constexpr int64_t kAlignment = 64;  // bytes
constexpr int kActivations = 5;     // the values of Activation in disc_math.h

// Element types of features, as indices of Kernels::pack and Kernels::unpack.
enum FeatureType : int { kAccumulated, kHalf, kBFloat16, kFeatureTypes };

// Columns of a block: those that exist, padded with zeros to `width`, a multiple of kAlignment
// bytes. What a kernel takes per column has the same padding.
struct Span {
  int64_t columns;
  int64_t width;
};

// A matrix of features, from the first column of the block on. Strides in elements.
struct Source {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct Target {
  void* data;
  int64_t row_stride;
  bool stream;  // write past the caches; its rows are aligned to kAlignment
};

// [S, columns], likewise.
template <typename Acc>
struct Table {
  Acc* data;
  int64_t stride;
};

// What a chunk adds to one slot: entries [begin, end).
struct Run {
  int64_t begin;
  int64_t end;
  int32_t slot;
  bool opens;  // the slot's first run: its row of the table is written, not added to
};

// The runs of a chunk. Each entry is a weight times a row of the chunk.
template <typename Acc>
struct Runs {
  const Run* begin;
  const Run* end;
  const uint8_t* entry_row;
  const Acc* entry_weight;
};

// What turns the table into its gradient G: see FeaturePull in disc_math.h.
template <typename Acc>
struct Pull {
  const Acc* outer;  // per column, like the next two
  const Acc* constant;
  const Acc* slope;
  const Acc* slot_offset;  // [S]
};

template <typename Acc>
struct Kernels {
  // packed[k] = source[order[k]] for k < rows. The caller will want rows up to `ahead` as well.
  using Pack = void (*)(
      const Source& source, const int64_t* order, int64_t rows, int64_t ahead, Span span,
      Acc* packed);
  // target[order[k]] = packed[k] - weight[k] * shift
  using Unpack = void (*)(
      const Acc* packed, const Acc* weight, const Acc* shift, const int64_t* order, int64_t rows,
      Span span, const Target& target);
  // sum += weight^T packed, magnitude += weight^T size_of(packed)
  using Moments = void (*)(
      const Acc* packed, const Acc* weight, int64_t rows, Span span, Acc* sum, Acc* magnitude);

  // Hard labels, where every row is one entry:
  // table[run.slot] (+)= sum over its entries of entry_weight * phi(packed - mean)
  using Gather = void (*)(
      const Acc* packed, const Acc* mean, const Runs<Acc>& runs, Span span,
      const Table<Acc>& table);
  // packed = phi'(packed - mean) * entry_weight * G[run.slot], sum += its rows
  using Differentiate = void (*)(
      Acc* packed, const Acc* mean, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
      const Table<const Acc>& table, Acc* sum);

  // The same in two steps, for rows that are several entries or none:
  // packed = phi(packed - mean), then gather_activated
  using Activate = void (*)(Acc* packed, const Acc* mean, int64_t rows, Span span);
  // grads[entry_row] += entry_weight * G[run.slot]
  using Spread = void (*)(
      Acc* grads, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
      const Table<const Acc>& table);
  // packed = phi'(packed - mean) * grads, sum += its rows
  using PullBack =
      void (*)(Acc* packed, const Acc* mean, const Acc* grads, int64_t rows, Span span, Acc* sum);

  // inverse = 1 / T, squares = sum_s P_s^2, class_sum[s] = sum over the columns of P_s
  using Summarize = void (*)(
      const Table<const Acc>& table, int64_t slots, const Acc* magnitude, Acc eps, Span span,
      Acc* inverse, Acc* squares, Acc* class_sum);
  // projection = sum_s slot_coef[s] * table[s]
  using Project = void (*)(
      const Table<const Acc>& table, int64_t slots, const Acc* slot_coef, Span span,
      Acc* projection);

  Pack pack[kFeatureTypes];
  Unpack unpack[kFeatureTypes];
  Moments moments[kActivations];
  Gather gather[kActivations];
  Differentiate differentiate[kActivations];
  Activate activate[kActivations];
  Gather gather_activated;
  Spread spread;
  PullBack pull_back[kActivations];
  Summarize summarize;
  Project project;
};

// The kernels for the processor at hand.
template <typename Acc>
const Kernels<Acc>& kernels();

}  // namespace discfused::cpu
