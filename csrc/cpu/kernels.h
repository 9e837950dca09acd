// The inner loops of the CPU backend: compiled once per instruction set, chosen at run time.
//
// A kernel sees a block: a few columns of the batch, with its rows in the order of a RowPlan. They
// are read where they are, or have been packed into contiguous memory in the accumulation type.
// Rows come in chunks, so that what is packed stays in the first-level cache and sums have two
// levels: the rows of a chunk, then the chunks. No ATen here: what library headers define inline
// must not be compiled for another processor.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define DISCFUSED_X86 1
#endif

namespace discfused::cpu {

constexpr int64_t kChunkRows = 64;
constexpr int64_t kAlignment = 64;  // bytes

// Wide enough to use whole cache lines and pages well, narrow enough that a chunk stays in the
// first-level cache (64 rows of 256 bytes).
template <typename Acc>
constexpr int64_t kBlockColumns = 256 / sizeof(Acc);

// A stripe has neighbouring blocks, so many at most: 4096 bytes of each row, a page of memory.
constexpr int64_t kStripeBlocks = 16;

template <typename Acc>
int64_t block_count(int64_t columns) {
  return (columns + kBlockColumns<Acc> - 1) / kBlockColumns<Acc>;
}

constexpr int kActivations = 5;  // the values of Activation in disc_math.h

// Element types of features.
enum FeatureType : int { kAccumulated, kHalf, kBFloat16, kFeatureTypes };

// Columns of a block: those that exist, padded with zeros to `width`, a multiple of kAlignment
// bytes. What a kernel takes per column has the same padding.
struct Span {
  int64_t columns;
  int64_t width;
};

struct Target {
  void* data;
  int64_t row_stride;
  bool stream;  // write past the caches; its rows are aligned to kAlignment
};

// One row for every slot, likewise.
template <typename Acc>
struct Table {
  Acc* data;
  int64_t stride;

  Table<const Acc> as_const() const { return {data, stride}; }
};

// What a chunk adds to one row of the table: its rows [begin, end) where a row is for one slot
// (hard labels), else entries [begin, end).
struct Run {
  int64_t begin;
  int64_t end;
  int32_t slot;  // the row of the table, as the plan counts them
  bool opens;    // the first run of that row: it is written, not added to
};

// The runs of a chunk. An entry is a weight times a row of the chunk; hard labels have none.
template <typename Acc>
struct Runs {
  const Run* begin;
  const Run* end;
  const uint8_t* entry_row;
  const Acc* entry_weight;
};

// Where rows are read: row k is row order[k] of a matrix, which starts at the first column of the
// block. The matrix is the batch, or what has been packed.
struct Source {
  const void* data;
  FeatureType type;
  int64_t row_stride;
  const int64_t* order;
  int64_t rows;  // how many `order` tells of: those of the next chunks as well
};

// A chunk of rows: a weight n_i each, and the row of the batch that each comes from.
template <typename Acc>
struct RowChunk {
  Source from;
  const Acc* weight;
  const int64_t* order;
  int64_t rows;
  uint64_t* signs;  // one for every row, a bit for every column: whether phi' is not 0; or null
  Acc* copy;        // where to leave the rows packed, or null
};

// Sums over the rows s of the table H, per column, with the coefficients A_s of the slots and the
// slopes F_s = sum of n_i phi'(z_i) over the rows of a slot, times `scale`: 1 / sum of all n_i, so
// that F_s H_s is no larger than H_s, whatever the unit of the weights.
template <typename Acc>
struct Correlations {
  Acc* projection;   // sum_s A_s H_s
  Acc* slope;        // sum_s F_s
  Acc* slope_table;  // sum_s F_s H_s
  Acc* slope_coef;   // sum_s F_s A_s
};

// What turns the table into its gradient G: see FeaturePull in disc_math.h.
template <typename Acc>
struct Pull {
  const Acc* outer;  // per column, like the next two
  const Acc* constant;
  const Acc* slope;
  const Acc* slot_offset;  // one for every row of the table
};

template <typename Acc>
struct Kernels {
  // packed[k] = row k for k < rows
  using Pack =
      void (*)(const Source& from, int64_t column_stride, int64_t rows, Span span, Acc* packed);

  // sum += weight^T rows, magnitude += weight^T size_of(rows), and packs the rows if it is asked to
  using Moments = void (*)(const RowChunk<Acc>& chunk, Span span, Acc* sum, Acc* magnitude);
  // The same sums for a stripe, whose columns form whole vectors
  using StripeMoments =
      void (*)(const RowChunk<Acc>& chunk, int64_t columns, Acc* sum, Acc* magnitude);

  // Hard labels, with z = row - mean: table[run.slot] (+)= sum over its rows of weight * phi(z),
  // and mass += all that was added, unless it is null
  using Gather = void (*)(
      const RowChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
      const Table<Acc>& table, Acc* mass);
  // The same table, and slopes[run.slot] (+)= sum over its rows of weight * phi'(z)
  using GatherSlopes = void (*)(
      const RowChunk<Acc>& chunk, const Acc* mean, const Runs<Acc>& runs, Span span,
      const Table<Acc>& table, const Table<Acc>& slopes);
  // target[order] = phi'(z) * weight * G[run.slot] - weight * shift
  using Write = void (*)(
      const RowChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Runs<Acc>& runs,
      const Pull<Acc>& pull, Span span, const Table<const Acc>& table, const Target& target);
  // The same for relu, from the signs of the chunk: its data is not looked at
  using WriteSigns = void (*)(
      const RowChunk<Acc>& chunk, const Acc* shift, const Runs<Acc>& runs, const Pull<Acc>& pull,
      Span span, const Table<const Acc>& table, const Target& target);
  // correlations +=, likewise
  using CorrelateSigns = void (*)(
      const RowChunk<Acc>& chunk, const Runs<Acc>& runs, const Table<const Acc>& table,
      const Acc* slot_coef, Acc scale, Span span, const Correlations<Acc>& correlations);

  // The same in two steps, for rows that are several entries or none:
  // out = phi(z) or phi'(z)
  using Apply = void (*)(const RowChunk<Acc>& chunk, const Acc* mean, Span span, Acc* out);
  // table[run.slot] (+)= sum over its entries of entry_weight * row, and mass as in Gather
  using GatherEntries = void (*)(
      const RowChunk<Acc>& chunk, const Runs<Acc>& runs, Span span, const Table<Acc>& table,
      Acc* mass);
  // grads[entry_row] += entry_weight * G[run.slot]
  using Spread = void (*)(
      Acc* grads, const Runs<Acc>& runs, const Pull<Acc>& pull, Span span,
      const Table<const Acc>& table);
  // target[order] = phi'(z) * grads - weight * shift
  using WriteSpread = void (*)(
      const RowChunk<Acc>& chunk, const Acc* mean, const Acc* shift, const Acc* grads, Span span,
      const Target& target);

  // inverse = 1 / mass, squares = sum_s P_s^2, class_sum[s] = sum over the columns of P_s
  using Summarize = void (*)(
      const Table<const Acc>& table, int64_t slots, const Acc* mass, const Acc* magnitude, Acc eps,
      Span span, Acc* inverse, Acc* squares, Acc* class_sum);
  // correlations +=, without slopes (null) the projection alone
  using Correlate = void (*)(
      const Table<const Acc>& table, const Table<const Acc>& slopes, int64_t slots,
      const Acc* slot_coef, Acc scale, Span span, const Correlations<Acc>& correlations);

  Pack pack[kFeatureTypes];
  Moments moments[kActivations][kFeatureTypes];
  StripeMoments stripe_moments[kActivations][kFeatureTypes];
  Gather gather[kActivations][kFeatureTypes];
  GatherSlopes gather_slopes[kActivations];
  Write write[kActivations][kFeatureTypes];
  WriteSigns write_signs[kFeatureTypes];
  CorrelateSigns correlate_signs;
  Apply activate[kActivations];
  Apply differentiate[kActivations];
  Gather gather_signs[kFeatureTypes];  // for relu, and writes the signs of the chunk
  GatherEntries gather_entries;
  Spread spread;
  WriteSpread write_spread[kActivations][kFeatureTypes];
  Summarize summarize;
  Correlate correlate;
};

// The kernels for the processor at hand.
template <typename Acc>
const Kernels<Acc>& kernels();

// What a thread has streamed is not ordered with its other memory accesses until then. Takes as
// long as the last of it takes to arrive: once at the end, not after every chunk.
void fence_streams();

}  // namespace discfused::cpu
