// One piece of the rows in the order of slots: see Pieces in kernels.h.
#pragma once

#include "cuda/device.h"

namespace discfused::cuda {

struct Piece {
  int64_t slot, begin, end;  // places in `order`
  bool is_cut;               // the slot has more pieces than one
};

template <typename A>
__device__ Piece find_piece(const Rows<A>& rows, int64_t piece, int64_t R) {
  const bool further = piece > rows.S;
  const int64_t multiple = (piece - rows.S - 1) * R;
  Piece p;
  p.slot = further ? rows.row_slot[multiple] : piece;
  const int64_t begin = rows.offsets[p.slot], end = rows.offsets[p.slot + 1];
  p.is_cut = end - begin > R;
  p.begin = further ? multiple : begin;
  p.end = end;
  if (p.is_cut) {
    const int64_t stop = (p.begin / R + 1) * R;
    if (stop < end) p.end = stop;
  }
  // A multiple that begins a slot, or lies in one that is not cut, begins no further piece.
  if (further && (!p.is_cut || begin == multiple)) p.end = p.begin;
  return p;
}

// Up to kUnroll rows from a place on: their weights and the features of a lane.
template <typename T>
struct RowBatch {
  using A = Accumulator<T>;
  int64_t row[kUnroll];
  A weight[kUnroll];
  T x[kUnroll][kColumns];

  __device__ RowBatch(
      const Rows<A>& rows, const Matrix<T>& features, const LaneColumns& columns, int64_t place,
      int64_t end) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = place + u < end ? place + u : end - 1;
      row[u] = rows.order[k];
      weight[u] = rows.weight[k];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        x[u][c] =
            features
                .data[row[u] * features.row_stride + columns.readable(c) * features.column_stride];
      }
    }
  }
};

}  // namespace discfused::cuda
