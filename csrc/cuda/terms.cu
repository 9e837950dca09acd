// the table H -> penalty, gini, kl, and the coefficients of G. Four kernels:
//
//   totals    of kRange slots and a tile of columns: T, and s2 relative to it
//   features  of a column, from these: 1 / T, impurity, constant, slope
//   slots     of kWarps slots: q, A / L and kl from their rows of H; then their part of the
//             projection sum_c A_c P_cj / L, while these are in cache
//   finish    projection, scalars

#include "cuda/device.h"
#include "cuda/launch.h"

namespace discfused::cuda {

namespace {

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) totals_kernel(const TermsParams<A> p) {
  const int64_t tiles = divide_up(p.D, kTile), range = blockIdx.x / tiles;
  const LaneColumns columns(blockIdx.x % tiles, p.D);
  A H[kRange / kWarps][kColumns], T[kColumns] = {}, squares[kColumns] = {};
#pragma unroll
  for (int u = 0; u < kRange / kWarps; ++u) {
    const int64_t slot = range * kRange + u * kWarps + warp_index();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const A value = p.table[(slot < p.S ? slot : p.S - 1) * p.D + columns.readable(c)];
      H[u][c] = slot < p.S ? value : A(0);
    }
  }
#pragma unroll
  for (int u = 0; u < kRange / kWarps; ++u) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) T[c] += H[u][c];
  }
  sum_over_warps(T);
#pragma unroll
  for (int u = 0; u < kRange / kWarps; ++u) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const A share = divide(H[u][c], T[c]);  // H^2 itself could overflow, and vanish
      squares[c] += share * share;
    }
  }
  sum_over_warps(squares);
  if (warp_index() != 0) return;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (!columns.exists(c)) continue;
    p.totals[range * p.D + columns.index(c)] = T[c];
    p.squares[range * p.D + columns.index(c)] = squares[c];
  }
}

// The sum over i < count of term(i), for each lane; all threads must call it.
template <typename A, class Term>
__device__ A column_sum(int64_t count, const Term& term) {
  A sum[1] = {};
#pragma unroll 8
  for (int64_t i = warp_index(); i < count; i += kWarps) sum[0] += term(i);
  sum_over_warps(sum);
  return sum[0];
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) features_kernel(const TermsParams<A> p) {
  const int64_t column = block_item(), at = column < p.D ? column : p.D - 1;
  A unit = 1;          // log K of collision
  bool alone = false;  // K < 2: the term is 0, unless features are not finite
  if (p.impurity == kCollision) {
    A present = 0;
    for (int64_t slot = threadIdx.x; slot < p.S; slot += kThreads) present += p.size[slot] != 0;
    present = block_sum(present);
    alone = present < 2;
    unit = static_cast<A>(log(static_cast<double>(alone ? A(2) : present)));
  }
  const A T = column_sum<A>(p.ranges(), [&](int64_t i) { return p.totals[i * p.D + at]; });
  A inverse = 1 / (T == 0 ? A(1) : T) + 0 * T;  // 1 / infinity is not dead
  if (T == 0 || inverse == static_cast<A>(INFINITY)) inverse = 0;
  const A square = column_sum<A>(p.ranges(), [&](int64_t i) {
    const A share = p.totals[i * p.D + at] * inverse;  // a division has a branch, which loads await
    return p.squares[i * p.D + at] * share * share;
  });
  if (warp_index() != 0) return;
  A value = 0, live = 0;
  if (column < p.D) {
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
    p.kept.inverse[column] = inverse;
    p.kept.constant[column] = factor * square;
    p.kept.slope[column] = factor * inverse;
  }
  value = warp_sum(value);
  live = warp_sum(live);
  if (lane_index() != 0) return;
  p.impurity_parts[blockIdx.x] = value;
  p.live_parts[blockIdx.x] = live;
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) slots_kernel(const TermsParams<A> p) {
  __shared__ A coefs[kWarps], kls[kWarps];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps, slot = first + warp_index();
  const A live = block_sum_of(p.live_parts, p.column_blocks());
  A P = 0, coef = 0, kl = 0;
  if (slot < p.S) {
#pragma unroll 16
    for (int64_t j = lane_index(); j < p.D; j += kWarp) {
      P += p.table[slot * p.D + j] * p.kept.inverse[j];
    }
    const A q = divide(warp_sum(P), live);
    const int64_t label = p.slot_class ? p.slot_class[slot] : slot;
    A pi = 0;
    if (label >= 0) pi = p.prior ? p.prior[label] : divide(p.size[slot], *p.total);
    const bool is_clamped = q < static_cast<A>(kProbabilityFloor);
    if (pi != 0) {
      const double ratio =
          static_cast<double>(pi) / (is_clamped ? kProbabilityFloor : static_cast<double>(q));
      kl = static_cast<A>(static_cast<double>(pi) * log(ratio));
    }
    if (!is_clamped && pi != 0) coef = -pi / q / live;
    if (lane_index() == 0) p.kept.slot_coef[slot] = coef;
  }
  if (lane_index() == 0) {
    coefs[warp_index()] = coef;
    kls[warp_index()] = kl;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    kl = 0;
    for (const A part : kls) kl += part;
    p.kl_parts[blockIdx.x] = kl;
  }
  // Several columns of a thread at a time: a store holds up the loads that follow it.
  for (int64_t j = threadIdx.x; j < p.D; j += kColumns * kThreads) {
    A sum[kColumns] = {};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t column = j + c * kThreads < p.D ? j + c * kThreads : j;
      const A inverse = p.kept.inverse[column];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const bool exists = first + w < p.S;
        const A H = p.table[(exists ? first + w : first) * p.D + column];
        sum[c] += exists ? coefs[w] * (H * inverse) : A(0);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (j + c * kThreads < p.D) p.projections[blockIdx.x * p.D + j + c * kThreads] = sum[c];
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) finish_kernel(const TermsParams<A> p) {
  const int64_t column = block_item(), at = column < p.D ? column : p.D - 1;
  const A projection =
      column_sum<A>(p.slot_blocks(), [&](int64_t i) { return p.projections[i * p.D + at]; });
  if (warp_index() == 0 && column < p.D) p.kept.projection[column] = projection;
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
  launch(totals_kernel<A>, p.ranges() * divide_up(p.D, kTile), p, stream);
  launch(features_kernel<A>, p.column_blocks(), p, stream);
  launch(slots_kernel<A>, p.slot_blocks(), p, stream);
  launch(finish_kernel<A>, p.column_blocks(), p, stream);
}

template void launch_terms(const TermsParams<float>&, Stream);
template void launch_terms(const TermsParams<double>&, Stream);

}  // namespace discfused::cuda
