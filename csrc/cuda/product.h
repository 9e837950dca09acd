// A matrix product in tiles, for soft labels. PyTorch's own would round to TF32 where a user has
// allowed that, and needs phi(x), or G, as a tensor.
#pragma once

#include "cuda/device.h"

namespace discfused::cuda {

constexpr int kProductTile = 64;   // rows, and columns, of a block
constexpr int kProductInner = 16;  // of both factors at a time
constexpr int kOwn = 4;            // rows, and columns, of a thread

inline int64_t product_blocks(int64_t rows, int64_t columns) {
  return divide_up(rows, kProductTile) * divide_up(columns, kProductTile);
}

// store(row, column, sum over k of left(row, k) * right(k, column)); in the order of k.
template <typename A, class Left, class Right, class Store>
__device__ void product(
    int64_t rows, int64_t inner, int64_t columns, const Left& left, const Right& right,
    const Store& store) {
  __shared__ A lefts[kProductInner][kProductTile], rights[kProductInner][kProductTile];
  const int64_t column_tiles = divide_up(columns, kProductTile);
  const int64_t first_row = blockIdx.x / column_tiles * kProductTile;
  const int64_t first_column = blockIdx.x % column_tiles * kProductTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_row = thread / (kProductTile / kOwn) * kOwn;
  const int own_column = thread % (kProductTile / kOwn) * kOwn;
  A sum[kOwn][kOwn] = {};
  for (int64_t first = 0; first < inner; first += kProductInner) {
    for (int i = thread; i < kProductInner * kProductTile; i += kThreads) {
      const int64_t k = first + i / kProductTile;
      const int64_t row = first_row + i % kProductTile, column = first_column + i % kProductTile;
      lefts[i / kProductTile][i % kProductTile] = k < inner && row < rows ? left(row, k) : A(0);
      rights[i / kProductTile][i % kProductTile] =
          k < inner && column < columns ? right(k, column) : A(0);
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kProductInner; ++k) {
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
#pragma unroll
        for (int c = 0; c < kOwn; ++c)
          sum[r][c] += lefts[k][own_row + r] * rights[k][own_column + c];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      const int64_t row = first_row + own_row + r, column = first_column + own_column + c;
      if (row < rows && column < columns) store(row, column, sum[r][c]);
    }
  }
}

}  // namespace discfused::cuda
