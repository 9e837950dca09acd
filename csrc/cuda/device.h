// What all kernels share: the columns of a thread, sums over a warp and a block, and the
// mathematics of one element. Included by .cu files alone.
//
// Blocks have kThreads threads. A warp works on a tile of kTile columns, of which each lane has
// kColumns, so that a warp always reads neighbouring numbers. Loads need no branch: where there is
// nothing to read, something valid is read and not used. That keeps many of them under way.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "cuda/kernels.h"

namespace discfused::cuda {

// ---------------------------------------------------------------- threads

__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
// Of a block that has one item for each lane, which its warps share.
__device__ inline int64_t block_item() {
  return static_cast<int64_t>(blockIdx.x) * kWarp + lane_index();
}

// Of a lane. Columns beyond D are read as the last one and are not stored.
struct LaneColumns {
  int64_t first, D;

  __device__ LaneColumns(int64_t tile, int64_t D) : first(tile * kTile + lane_index()), D(D) {}
  __device__ int64_t index(int c) const { return first + c * kWarp; }
  __device__ bool exists(int c) const { return index(c) < D; }
  __device__ int64_t readable(int c) const { return exists(c) ? index(c) : D - 1; }
};

// The same sum for every lane.
template <typename A>
__device__ A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The same sum for every thread of the block, all of which must call it.
template <typename A>
__device__ A block_sum(A value) {
  __shared__ A of_warp[kWarps];
  const A sum = warp_sum(value);
  if (lane_index() == 0) of_warp[warp_index()] = sum;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  __syncthreads();  // before of_warp is used again
  return total;
}

template <typename A>
__device__ A block_sum_of(const A* values, int64_t count) {
  A sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += values[i];
  return block_sum(sum);
}

// Adds up the columns that the warps of a block have in common; all threads must call it.
template <typename A, int count>
__device__ void sum_over_warps(A (&value)[count]) {
  __shared__ A of_warp[kWarps][count * kWarp];
#pragma unroll
  for (int c = 0; c < count; ++c) of_warp[warp_index()][c * kWarp + lane_index()] = value[c];
  __syncthreads();
#pragma unroll
  for (int c = 0; c < count; ++c) {
    value[c] = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value[c] += of_warp[w][c * kWarp + lane_index()];
  }
  __syncthreads();  // before of_warp is used again
}

// ---------------------------------------------------------------- one element
// Comparisons are arranged so that NaN passes.

template <typename A>
__device__ A activate(A x, int activation) {
  if (activation == kAbs) return x < 0 ? -x : x;
  return x > 0 ? x : 0 * x;  // not 0: -infinity must not be lost
}

// phi'(x) * g
template <typename A>
__device__ A pull_back(A x, A g, int activation) {
  if (activation == kAbs) return x > 0 ? g : (x < 0 ? -g : x * g);
  return x > 0 ? g : 0 * g;
}

// The mean of nothing is 0.
template <typename A>
__device__ A divide(A sum, A count) {
  return count == 0 ? sum : sum / count;
}

}  // namespace discfused::cuda
