// the table H -> penalty, gini, kl, and the coefficients of G. Six kernels:
//
//   totals      parts of T                      a block has a range of slots and a tile of columns
//   probability 1 / T, parts of s2 and of q     likewise
//   features    impurity, constant, slope       a thread has a feature
//   classes     A / L, parts of kl              a thread has a slot
//   projection  parts of sum_c A_c P_cj / L     like totals
//   finish      projection, scalars             a thread has a feature

#include "cuda/device.h"
#include "cuda/launch.h"

namespace discfused::cuda {

namespace {

// Of a block, and of each warp in it: every kWarps-th slot of the range.
struct SlotRange {
  int64_t tile, range, first, last;

  template <typename A>
  __device__ explicit SlotRange(const TermsParams<A>& p)
      : tile(blockIdx.x % p.tiles()), range(blockIdx.x / p.tiles()) {
    first = range * p.range_slots + warp_index();
    last = (range + 1) * p.range_slots < p.S ? (range + 1) * p.range_slots : p.S;
  }
};

// The H of a lane; 0 in an empty slot.
template <typename A>
__device__ void read_slot(
    const TermsParams<A>& p, const LaneColumns& columns, int64_t slot, A (&H)[kColumns]) {
  const bool present = p.size[slot] != 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const A value = p.table[slot * p.D + columns.readable(c)];
    H[c] = present ? value : A(0);
  }
}

// Writes one row of `parts` [ranges, D]: the sum over the warps.
template <typename A>
__device__ void store_part(
    const LaneColumns& columns, int64_t range, A (&sum)[kColumns], A* parts) {
  sum_over_warps(sum);
  if (warp_index() != 0) return;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (columns.exists(c)) parts[range * columns.D + columns.index(c)] = sum[c];
  }
}

template <typename A>
__device__ A sum_of_parts(const A* parts, int64_t count, int64_t stride) {
  A sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < count; ++part) sum += parts[part * stride];
  return sum;
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) totals_kernel(const TermsParams<A> p) {
  const SlotRange block(p);
  const LaneColumns columns(block.tile, p.D);
  A sum[kColumns] = {};
#pragma unroll 4
  for (int64_t slot = block.first; slot < block.last; slot += kWarps) {
    A H[kColumns];
    read_slot(p, columns, slot, H);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] += H[c];
  }
  store_part(columns, block.range, sum, p.totals);
}

// 1 / T; 0 for a dead feature. 0 * T, because 1 / infinity is not dead.
template <typename A>
__device__ A inverse_of(A T) {
  const A inverse = 1 / (T == 0 ? A(1) : T) + 0 * T;
  return T == 0 || inverse == static_cast<A>(INFINITY) ? A(0) : inverse;
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    probability_kernel(const TermsParams<A> p) {
  const SlotRange block(p);
  const LaneColumns columns(block.tile, p.D);
  A inverse[kColumns], squares[kColumns] = {};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    inverse[c] = inverse_of(sum_of_parts(p.totals + columns.readable(c), p.ranges, p.D));
    if (block.range == 0 && warp_index() == 0 && columns.exists(c)) {
      p.kept.inverse[columns.index(c)] = inverse[c];
    }
  }
#pragma unroll 4
  for (int64_t slot = block.first; slot < block.last; slot += kWarps) {
    A P[kColumns], q = 0;
    read_slot(p, columns, slot, P);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      P[c] *= inverse[c];
      squares[c] += P[c] * P[c];
      q += columns.exists(c) ? P[c] : A(0);
    }
    q = warp_sum(q);
    if (lane_index() == 0) p.q[block.tile * p.S + slot] = q;
  }
  store_part(columns, block.range, squares, p.squares);
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) features_kernel(const TermsParams<A> p) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  A unit = 1;          // log K of collision
  bool alone = false;  // K < 2: the term is 0, unless features are not finite
  if (p.impurity == kCollision) {
    A present = 0;
    for (int64_t slot = threadIdx.x; slot < p.S; slot += kThreads) present += p.size[slot] != 0;
    present = block_sum(present);
    alone = present < 2;
    unit = static_cast<A>(log(static_cast<double>(alone ? A(2) : present)));
  }
  A value = 0, live = 0;
  if (column < p.D) {
    const A square = sum_of_parts(p.squares + column, p.ranges, p.D);
    const A inverse = p.kept.inverse[column];
    A factor = static_cast<A>(2.0 / static_cast<double>(p.D));
    live = inverse != 0;
    if (alone) {
      value = 0 * square;
      factor = 0;
    } else if (inverse == 0) {
      value = 1;
    } else if (p.impurity == kCollision) {
      value = static_cast<A>(-log(static_cast<double>(square))) / unit;
      factor /= square * unit;
    } else {
      value = 1 - square;
    }
    p.kept.constant[column] = factor * square;
    p.kept.slope[column] = factor * inverse;
  }
  value = block_sum(value);
  live = block_sum(live);
  if (threadIdx.x != 0) return;
  p.impurity_parts[blockIdx.x] = value;
  p.live_parts[blockIdx.x] = live;
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) classes_kernel(const TermsParams<A> p) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  A kl = 0;
  if (slot < p.S) {
    const A live = sum_of_parts(p.live_parts, p.column_blocks(), 1);
    const A q = divide(sum_of_parts(p.q + slot, p.tiles(), p.S), live);
    const int64_t label = p.slot_class ? p.slot_class[slot] : slot;
    A pi = 0;
    if (label >= 0) pi = p.prior ? p.prior[label] : divide(p.size[slot], *p.total);
    const bool is_clamped = q < static_cast<A>(kProbabilityFloor);
    if (pi != 0) {
      const double ratio =
          static_cast<double>(pi) / (is_clamped ? kProbabilityFloor : static_cast<double>(q));
      kl = static_cast<A>(static_cast<double>(pi) * log(ratio));
    }
    p.kept.slot_coef[slot] = is_clamped || pi == 0 ? A(0) : -pi / q / live;
  }
  kl = block_sum(kl);
  if (threadIdx.x == 0) p.kl_parts[blockIdx.x] = kl;
}

// Into `totals`: the parts of T have been used.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    projection_kernel(const TermsParams<A> p) {
  const SlotRange block(p);
  const LaneColumns columns(block.tile, p.D);
  A inverse[kColumns], sum[kColumns] = {};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) inverse[c] = p.kept.inverse[columns.readable(c)];
#pragma unroll 4
  for (int64_t slot = block.first; slot < block.last; slot += kWarps) {
    const A slot_coef = p.kept.slot_coef[slot];
    A H[kColumns];
    read_slot(p, columns, slot, H);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] += slot_coef * (H[c] * inverse[c]);
  }
  store_part(columns, block.range, sum, p.totals);
}

template <typename A>
__device__ A block_sum_of(const A* values, int64_t count) {
  A sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += values[i];
  return block_sum(sum);
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) finish_kernel(const TermsParams<A> p) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column < p.D) {
    p.kept.projection[column] = sum_of_parts(p.totals + column, p.ranges, p.D);
  }
  if (blockIdx.x != 0) return;
  A gini = block_sum_of(p.impurity_parts, p.column_blocks()) / static_cast<A>(p.D);
  const A live = block_sum_of(p.live_parts, p.column_blocks());
  A kl = block_sum_of(p.kl_parts, p.slot_blocks());
  if (threadIdx.x != 0) return;
  if (p.absent) kl += *p.absent;
  if (gini < 0) gini = 0;  // by rounding
  if (kl < 0 || live == 0) kl = 0;
  if (*p.total == 0) gini = kl = 0;  // no row counts
  *p.gini = gini;
  *p.kl = kl;
  *p.penalty = static_cast<A>(p.gini_weight) * gini + static_cast<A>(p.kl_weight) * kl;
}

}  // namespace

template <typename A>
void launch_terms(const TermsParams<A>& p, Stream stream) {
  launch(totals_kernel<A>, p.tiles() * p.ranges, p, stream);
  launch(probability_kernel<A>, p.tiles() * p.ranges, p, stream);
  launch(features_kernel<A>, p.column_blocks(), p, stream);
  launch(classes_kernel<A>, p.slot_blocks(), p, stream);
  launch(projection_kernel<A>, p.tiles() * p.ranges, p, stream);
  launch(finish_kernel<A>, p.column_blocks(), p, stream);
}

template void launch_terms(const TermsParams<float>&, Stream);
template void launch_terms(const TermsParams<double>&, Stream);

}  // namespace discfused::cuda
