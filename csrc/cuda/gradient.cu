// d loss / d features, from the table H, or from d loss / d H

#include "cuda/launch.h"
#include "cuda/pieces.h"
#include "cuda/product.h"

namespace discfused::cuda {

namespace {

// The upstream gradients of the two terms.
template <typename A>
struct Upstream {
  A of_gini = 0, of_kl = 0;

  __device__ explicit Upstream(const TableGradient<A>& t) {
    if (t.grad_gini) of_gini = *t.grad_gini;
    if (t.grad_kl) of_kl = *t.grad_kl;
    if (!t.grad_penalty) return;
    of_gini += *t.grad_penalty * static_cast<A>(t.gini_weight);
    of_kl += *t.grad_penalty * static_cast<A>(t.kl_weight);
  }
};

// G_cj of one column: inverse * (constant - slope * H_cj + the part of the slot)
template <typename A>
struct ColumnGradient {
  A inverse = 1, constant = 0, slope = -1;  // without coefficients G is given in place of H

  __device__ ColumnGradient(
      const TableGradient<A>& t, const Upstream<A>& upstream, int64_t column) {
    if (!t.kept.inverse) return;
    inverse = t.kept.inverse[column];
    constant =
        upstream.of_gini * t.kept.constant[column] - upstream.of_kl * t.kept.projection[column];
    slope = upstream.of_gini * t.kept.slope[column];
  }

  // 1 / T last: it may be large. A dead feature gets 0 even where slots have NaN.
  __device__ A of(A H, A of_slot) const {
    return inverse == 0 ? A(0) : inverse * (constant - slope * H + of_slot);
  }
};

template <typename A>
__device__ A slot_part(const TableGradient<A>& t, const Upstream<A>& upstream, int64_t slot) {
  return t.kept.slot_coef ? upstream.of_kl * t.kept.slot_coef[slot] : A(0);
}

// A warp has one tile of columns of one piece of the rows, which have G in common. Rows that do not
// count get 0 and are not used.
template <typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    gradient_kernel(const GradientParams<T> p) {
  using A = Accumulator<T>;
  const int64_t tiles = divide_up(p.D, kTile);
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (item >= p.pieces * tiles) return;
  const Piece piece = find_piece(p.rows, item / tiles, p.R);
  if (piece.begin == piece.end) return;
  const LaneColumns columns(item % tiles, p.D);
  const bool counts = piece.slot < p.rows.S;
  A G[kColumns] = {};
  if (counts) {
    const Upstream<A> upstream(p.table);
    const A of_slot = slot_part(p.table, upstream, piece.slot);
    const A n = p.rows.size[piece.slot];
    const int64_t row = p.by_class ? p.rows.slot_class[piece.slot] : piece.slot;
    const Matrix<A>& H = p.table.table;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t column = columns.readable(c);
      const ColumnGradient<A> gradient(p.table, upstream, column);
      const A value = H.data[row * H.row_stride + column * H.column_stride];
      G[c] = divide(gradient.of(value, of_slot), n);
    }
  }
  for (int64_t k = piece.begin; k < piece.end; k += kUnroll) {
    const RowBatch<T> batch(p.rows, p.x, columns, k, piece.end);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (k + u >= piece.end) break;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (!columns.exists(c)) continue;
        const A dx = pull_back(static_cast<A>(batch.x[u][c]), batch.weight[u] * G[c], p.activation);
        p.dx[batch.row[u] * p.D + columns.index(c)] = static_cast<T>(counts ? dx : A(0));
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    soft_gradient_kernel(const SoftGradientParams<T> p) {
  using A = Accumulator<T>;
  const Upstream<A> upstream(p.table);
  const Matrix<A>& H = p.table.table;
  product<A>(
      p.N, p.C, p.D, [&](int64_t i, int64_t c) { return divide(p.m[i * p.C + c], p.size[c]); },
      [&](int64_t c, int64_t j) {
        const ColumnGradient<A> gradient(p.table, upstream, j);
        const A value = H.data[c * H.row_stride + j * H.column_stride];
        return gradient.of(value, slot_part(p.table, upstream, c));
      },
      [&](int64_t i, int64_t j, A sum) {
        A dx = 0;
        if (p.counts[i] != 0) {
          const T x = p.x.data[i * p.x.row_stride + j * p.x.column_stride];
          dx = pull_back(static_cast<A>(x), sum, p.activation);
        }
        p.dx[i * p.D + j] = static_cast<T>(dx);
      });
}

}  // namespace

template <typename T>
void launch_gradient(const GradientParams<T>& p, Stream stream) {
  launch(gradient_kernel<T>, divide_up(p.pieces * divide_up(p.D, kTile), kWarps), p, stream);
}

template <typename T>
void launch_soft_gradient(const SoftGradientParams<T>& p, Stream stream) {
  launch(soft_gradient_kernel<T>, product_blocks(p.N, p.D), p, stream);
}

DISCFUSED_INSTANTIATE(launch_gradient, GradientParams)
DISCFUSED_INSTANTIATE(launch_soft_gradient, SoftGradientParams)

}  // namespace discfused::cuda
