// features -> the table H

#include "cuda/launch.h"
#include "cuda/pieces.h"
#include "cuda/product.h"

namespace discfused::cuda {

namespace {

// A warp has one tile of columns of one piece of the rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) table_kernel(const TableParams<T> p) {
  using A = Accumulator<T>;
  const int64_t tiles = divide_up(p.D, kTile);
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (item >= p.pieces * tiles) return;
  const int64_t index = item / tiles;
  const Piece piece = find_piece(p.rows, index, p.R);
  const bool further = index > p.rows.S;
  if (piece.slot == p.rows.S) return;
  if (piece.begin == piece.end && (further || p.by_class)) return;  // an empty slot has no class
  const LaneColumns columns(item % tiles, p.D);
  A sum[kColumns] = {};
  for (int64_t k = piece.begin; k < piece.end; k += kUnroll) {
    const RowBatch<T> batch(p.rows, p.x, columns, k, piece.end);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const A a = batch.weight[u] * activate(static_cast<A>(batch.x[u][c]), p.activation);
        sum[c] += k + u < piece.end ? a : A(0);
      }
    }
  }
  const int64_t slot_row = p.by_class ? p.rows.slot_class[piece.slot] : piece.slot;
  A* out = further ? p.parts + (index - p.rows.S - 1) * p.D : p.table + slot_row * p.D;
  const A n = piece.is_cut ? A(1) : p.rows.size[piece.slot];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (columns.exists(c)) out[columns.index(c)] = divide(sum[c], n);
  }
}

// A block has one tile of columns of one multiple of R, and folds the slot whose second piece
// begins there, if there is one.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) fold_kernel(const FoldParams<A> p) {
  const int64_t tiles = divide_up(p.D, kTile), multiple = blockIdx.x / tiles;
  const int64_t slot = p.rows.row_slot[multiple * p.R];
  const int64_t begin = p.rows.offsets[slot], end = p.rows.offsets[slot + 1];
  if (slot == p.rows.S || end - begin <= p.R || begin / p.R + 1 != multiple) return;
  const LaneColumns columns(blockIdx.x % tiles, p.D);
  A sum[kColumns] = {};
  const int64_t last = divide_up(end, p.R);
#pragma unroll 4
  for (int64_t part = multiple + warp_index(); part < last; part += kWarps) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] += p.parts[part * p.D + columns.readable(c)];
  }
  sum_over_warps(sum);
  if (warp_index() != 0) return;
  A* H = p.table + (p.by_class ? p.rows.slot_class[slot] : slot) * p.D;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (!columns.exists(c)) continue;
    A& value = H[columns.index(c)];
    value = divide(value + sum[c], p.rows.size[slot]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    soft_table_kernel(const SoftTableParams<T> p) {
  using A = Accumulator<T>;
  product<A>(
      p.C, p.N, p.D, [&](int64_t c, int64_t i) { return p.m[i * p.C + c]; },
      [&](int64_t i, int64_t j) {
        if (p.counts[i] == 0) return A(0);
        const T x = p.x.data[i * p.x.row_stride + j * p.x.column_stride];
        return activate(static_cast<A>(x), p.activation);
      },
      [&](int64_t c, int64_t j, A sum) { p.table[c * p.D + j] = divide(sum, p.size[c]); });
}

}  // namespace

template <typename T>
void launch_table(const TableParams<T>& p, Stream stream) {
  launch(table_kernel<T>, divide_up(p.pieces * divide_up(p.D, kTile), kWarps), p, stream);
}

template <typename A>
void launch_fold(const FoldParams<A>& p, Stream stream) {
  launch(fold_kernel<A>, p.further * divide_up(p.D, kTile), p, stream);
}

template <typename T>
void launch_soft_table(const SoftTableParams<T>& p, Stream stream) {
  launch(soft_table_kernel<T>, product_blocks(p.C, p.D), p, stream);
}

template void launch_fold(const FoldParams<float>&, Stream);
template void launch_fold(const FoldParams<double>&, Stream);

DISCFUSED_INSTANTIATE(launch_table, TableParams)
DISCFUSED_INSTANTIATE(launch_soft_table, SoftTableParams)

}  // namespace discfused::cuda
