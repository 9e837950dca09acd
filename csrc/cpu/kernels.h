// The inner loops of the CPU backend: compiled once per instruction set, chosen at run time.
//
// A kernel sees a block: a few columns of the batch, whose rows have been packed into contiguous
// memory in the accumulation type, in the order of a RowPlan. Rows come in chunks, so that what a
// kernel works on stays in the first-level cache and sums have two levels: rows of a chunk, then
// chunks. No ATen here: these files must not compile library code for a foreign processor.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DISCFUSED_X86 1
#endif

namespace discfused::cpu {

constexpr int64_t kChunkRows = 64;
constexpr int64_t kAlignment = 64;  // bytes
constexpr int kActivations = 5;      // the values of Activation in disc_math.h

// Where to find the element types of features in Kernels::pack and Kernels::unpack.
enum FeatureType : int { kAccumulated, kHalf, kBFloat16, kFeatureTypes };

// The part of one chunk that belongs to one slot.
struct Run {
  int64_t begin;  // entries [begin, end)
  int64_t end;
  int32_t slot;
  bool opens;  // the slot's first run: its row of the table is written, not added to
};

// entry: row of the chunk * weight, part of the sum of a slot
template <typename Acc>
struct Runs {
  const Run* begin;
  const Run* end;
  const uint8_t* entry_row;   // [entries]
  const Acc* entry_weight;    // [entries]
};

// Columns of a packed block: `columns` that exist, padded with zeros to `width`, a multiple of
// kAlignment bytes.
struct Span {
  int64_t columns;
  int64_t width;
};

// A matrix in memory, from the first column of the block on.
struct Source {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct Target {
  void* data;
  int64_t row_stride;
  bool stream;  // write past the caches; rows of the block are aligned to kAlignment
};

// [S, columns], also from the first column of the block on.
template <typename Acc>
struct Table {
  Acc* data;
  int64_t stride;
};

// Per column of the block, [width] each: see FeaturePull.
template <typename Acc>
struct Pull {
  const Acc* outer;
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
  // sum += weight^T packed, magnitude += weight^T |packed| (or its square: size_of)
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

  // The same in two steps, for rows that are in several runs:
  // packed = phi(packed - mean); then gather_activated
  using Activate = void (*)(Acc* packed, const Acc* mean, int64_t rows, Span span);
  // grads[entry_row] += entry_weight * G[run.slot]
  using Spread = void (*)(
      Acc* grads, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
      const Table<const Acc>& table);
  // packed = phi'(packed - mean) * grads, sum += its rows
  using PullBack = void (*)(
      Acc* packed, const Acc* mean, const Acc* grads, int64_t rows, Span span, Acc* sum);

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
