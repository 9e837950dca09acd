// The parameters of every kernel, and the functions that launch it. Pointers are device memory.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DISCFUSED_HOST_DEVICE __host__ __device__
#else
#define DISCFUSED_HOST_DEVICE
#endif

struct CUstream_st;

namespace discfused::cuda {

using Stream = CUstream_st*;  // cudaStream_t

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kLeastBlocks = 2;  // of a multiprocessor; without it ptxas spills to fit four
constexpr int kWarps = kThreads / kWarp;
constexpr int kColumns = 4;
constexpr int kTile = kWarp * kColumns;
constexpr int kUnroll = 4;  // rows that a warp reads at once

// The values of `activation` and `impurity` in the operators: places in ACTIVATIONS and IMPURITIES
// of discfused/_definitions.py.
enum Activation : int { kAbs, kRelu, kActivations };
enum Impurity : int { kGini, kCollision, kImpurities };
constexpr double kProbabilityFloor = 1e-10;

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

template <typename T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;
};

DISCFUSED_HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- rows

// What the stage `rows` returns for hard labels, as kernels read it. Where C <= N a slot is a
// class. Else S = N, and the slot of a class is where its rows begin in `order`: a class of k rows
// is followed by k - 1 empty slots. Slot S has the rows that do not count.
template <typename A>
struct Rows {
  int64_t N, S;
  int64_t* order;       // [N] rows slot after slot, each slot's in their own order
  int64_t* row_slot;    // [N] the slots of these
  int64_t* offsets;     // [S + 2] where the rows of a slot begin in `order`
  int64_t* slot_class;  // [S] -1 for an empty slot
  A* size;              // [S] n_c, 0 for an empty slot
  A* total;             // [] sum of the sizes
  A* weight;            // [N] sample weights in the order of `order`
};

constexpr int64_t kRun = 1024;       // rows of the first runs
constexpr int64_t kRunsAtOnce = 32;  // to merge: the work for a row grows with their number

// Runs of `length` rows, each in the order of classes. A row that does not count has class C.
template <typename A>
struct Runs {
  int64_t length;
  int64_t *label, *row;  // [N]
  A* mass;               // [N] sum of the class's sample weights in the run, if there are any
};

// The kernels of this stage run one after the other: labels -> runs -> longer runs -> rows.
template <typename A>
struct RowsParams {
  const int64_t* target;
  const A* sample_weight;  // or null
  int64_t C, ignore_index;
  Rows<A> out;
  bool last;  // whether a kernel has all rows at once, and fills `out`; else `merged`
  Runs<A> runs, merged;
  A* whole;        // [first runs] sums of the sample weights
  int64_t* wrong;  // [first runs] numbers of labels out of range
  int32_t* bad;    // [] gets the number of labels out of range, if there are any
};

template <typename A>
void launch_rows(RowsParams<A>, Stream);

// ---------------------------------------------------------------- table

// Slots of more than R rows are cut at multiples of R in `order`, so that no warp has more than R.
// Every multiple begins at most one further piece: there are S + 1 + N / R pieces.
constexpr int64_t kUncut = 256;  // so few rows, a piece a class, are not cut: one launch less
constexpr int64_t kLeastPiece = 32;
constexpr int64_t kWarpsAtOnce = 4096;  // of a large GPU, about

struct Pieces {
  int64_t R, count, further;
  Pieces(int64_t N, int64_t S, int64_t D) {
    const int64_t spread = divide_up(N * divide_up(D, kTile), kWarpsAtOnce);
    const bool uncut = N <= kUncut && N <= S * kLeastPiece;
    R = uncut ? N : spread > kLeastPiece ? spread : kLeastPiece;
    further = N > R ? divide_up(N, R) : 0;
    count = S + 1 + further;
  }
};

// H of slots that are not cut, 0 for an empty one; and sums over the pieces of the others: of the
// first piece in the table, of the further ones in `parts`.
template <typename T>
struct TableParams {
  using A = Accumulator<T>;
  Matrix<T> x;
  Rows<A> rows;
  int64_t D, R, pieces;
  int activation;
  bool by_class;  // a row of the table is a class, not a slot
  A* table;       // [S or C, D]
  A* parts;       // [further pieces, D]
};

// H of the slots that were cut.
template <typename A>
struct FoldParams {
  Rows<A> rows;
  int64_t D, R, further;
  bool by_class;
  A* table;
  const A* parts;
};

// H of soft labels.
template <typename T>
struct SoftTableParams {
  using A = Accumulator<T>;
  Matrix<T> x;
  const A* m;       // [N, C]
  const A* counts;  // [N] 0 for a row that does not count
  const A* size;    // [C]
  int64_t N, C, D;
  int activation;
  A* table;  // [C, D]
};

template <typename T>
void launch_table(const TableParams<T>&, Stream);
template <typename A>
void launch_fold(const FoldParams<A>&, Stream);
template <typename T>
void launch_soft_table(const SoftTableParams<T>&, Stream);

// ---------------------------------------------------------------- terms

constexpr int kRange = 64;  // slots of a block of the first kernel

// What `terms` keeps for `gradient` beside H:
// G_cj = inverse_j (g1 (constant_j - slope_j H_cj) + g2 (slot_coef_c - projection_j))
template <typename A>
struct Coefficients {
  A *inverse, *constant, *slope, *projection;  // [D]; inverse: 1 / T, 0 for a dead feature
  A* slot_coef;                                // [S] A_c / L
};

// The kernels of this stage run one after the other on the same parameters.
template <typename A>
struct TermsParams {
  const A* table;             // [S, D] H
  const A* size;              // [S]
  const A* total;             // []
  const int64_t* slot_class;  // [S]; null where a slot is a class
  const A* prior;             // [C]; null for that of the batch
  const A* absent;            // [] what classes without a slot add to kl, or null
  int64_t S, D;
  int impurity;
  double gini_weight, kl_weight;
  Coefficients<A> kept;
  A* totals;          // [ranges, D] T of these slots alone
  A* squares;         // [ranges, D] s2 relative to that
  A* projections;     // [slot blocks, D] parts of the projection
  A* impurity_parts;  // [column blocks]
  A* live_parts;      // [column blocks]
  A* kl_parts;        // [slot blocks]
  A *penalty, *gini, *kl;

  DISCFUSED_HOST_DEVICE int64_t ranges() const { return divide_up(S, kRange); }
  DISCFUSED_HOST_DEVICE int64_t column_blocks() const { return divide_up(D, kWarp); }
  DISCFUSED_HOST_DEVICE int64_t slot_blocks() const { return divide_up(S, kWarps); }
  int64_t scratch() const {
    return (2 * ranges() + slot_blocks()) * D + 2 * column_blocks() + slot_blocks();
  }
};

template <typename A>
void launch_terms(const TermsParams<A>&, Stream);

// ---------------------------------------------------------------- gradient

// d loss / d H
template <typename A>
struct TableGradient {
  Matrix<A> table;                              // H; or G itself, and no coefficients
  Coefficients<A> kept;                         // null pointers for that
  const A *grad_penalty, *grad_gini, *grad_kl;  // [], each may be null
  double gini_weight, kl_weight;
};

template <typename T>
struct GradientParams {
  using A = Accumulator<T>;
  Matrix<T> x;
  Rows<A> rows;
  TableGradient<A> table;
  int64_t D, R, pieces;
  int activation;
  bool by_class;
  T* dx;  // [N, D]
};

template <typename T>
struct SoftGradientParams {
  using A = Accumulator<T>;
  Matrix<T> x;
  const A* m;
  const A* counts;
  const A* size;
  TableGradient<A> table;
  int64_t N, C, D;
  int activation;
  T* dx;
};

template <typename T>
void launch_gradient(const GradientParams<T>&, Stream);
template <typename T>
void launch_soft_gradient(const SoftGradientParams<T>&, Stream);

}  // namespace discfused::cuda
