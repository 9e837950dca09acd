// The kernels of kernels.h, for one instruction set. The translation unit that includes this
// header has included every library header before, switched the compiler to the instruction set,
// and defined DISCFUSED_ISA (a namespace of its own) and DISCFUSED_VECTOR_BYTES.

#pragma once

#include "cpu/vector.h"

namespace discfused::cpu::DISCFUSED_ISA {

// ---------------------------------------------------------------- one element

struct Abs {
  template <typename T>
  static Vector<T> activate(Vector<T> x) {
    return reinterpret_cast<Vector<T>>(reinterpret_cast<Bits<T>>(x) & ~sign_mask<T>());
  }
  // phi'(x) g; 0 at x = 0
  template <typename T>
  static Vector<T> pull_back(Vector<T> x, Vector<T> g) {
    const Bits<T> sign = reinterpret_cast<Bits<T>>(x) & sign_mask<T>();
    return x == Vector<T>{} ? Vector<T>{}
                            : reinterpret_cast<Vector<T>>(reinterpret_cast<Bits<T>>(g) ^ sign);
  }
};

struct Relu {
  template <typename T>
  static Vector<T> activate(Vector<T> x) {
    return x > Vector<T>{} ? x : x * T(0);  // not 0: what is not finite must not be lost
  }
  template <typename T>
  static Vector<T> pull_back(Vector<T> x, Vector<T> g) {
    return x <= Vector<T>{} ? Vector<T>{} : g;
  }
};

// ---------------------------------------------------------------- rows of features

// body(j, columns) for every vector of columns: j is its first one, `columns` how many it has.
template <typename Acc, typename Body>
inline void for_each_vector(int64_t count, Body body) {
  constexpr std::integral_constant<int64_t, kLanes<Acc>> whole;
  int64_t j = 0;
  for (; j + whole <= count; j += whole) body(j, whole);
  if (j < count) body(j, count - j);
}

template <typename T, typename Whole>
inline auto read(const T* from, Whole) {
  return widen(from);
}

template <typename T>
inline auto read(const T* from, int64_t columns) {
  T part[DISCFUSED_VECTOR_BYTES / std::min<size_t>(sizeof(T), 4)] = {};
  std::memcpy(part, from, columns * sizeof(T));
  return widen(part);
}

// body(R) with R, 1 to 4, as a constant.
template <int kMost = 4, typename Body>
inline void with_constant(int64_t R, Body body) {
  if (R == kMost) {
    body(std::integral_constant<int, kMost>{});
  } else if constexpr (kMost > 1) {
    with_constant<kMost - 1>(R, body);
  }
}

// H (+)= sum over R rows of share_k phi(x_k); if they are the last ones, total and squares follow.
template <typename Phi, typename T, bool kFirst, bool kLast, int R, typename Acc>
inline void add_rows(
    const ClassRows<Acc>& rows, int64_t k, Columns<const void*> x, Acc* H, Acc* total,
    Acc* squares) {
  const T* row[R];
  Acc share[R];
  for (int r = 0; r < R; ++r) {
    row[r] = static_cast<const T*>(x.data) + rows.order[k + r] * x.row_stride;
    share[r] = rows.share[k + r];
  }
  for_each_vector<Acc>(x.count, [=](int64_t j, auto columns) {
    Vector<Acc> sum{};
    if constexpr (!kFirst) sum = load(H + j);
    for (int r = 0; r < R; ++r) {
      sum += share[r] * Phi::template activate<Acc>(read(row[r] + j, columns));
    }
    store(H + j, sum);
    if constexpr (kLast) {
      store(total + j, load(total + j) + sum);
      store(squares + j, load(squares + j) + sum * sum);
    }
  });
}

// Sums of more rows are made of sums of so many: rounding errors grow with the longest sum.
constexpr int64_t kPieceRows = 256;

template <typename Phi, typename T, typename Acc>
void class_mean(
    const ClassRows<Acc>& rows, Columns<const void*> x, Acc* H, Acc* total, Acc* squares) {
  if (rows.count <= kPieceRows) {
    // The first group has one to four rows, so that all others have four.
    const int64_t first = (rows.count - 1) % 4 + 1;
    with_constant(first, [&](auto R) {
      const auto add = first < rows.count ? add_rows<Phi, T, true, false, R, Acc>
                                          : add_rows<Phi, T, true, true, R, Acc>;
      add(rows, 0, x, H, total, squares);
    });
    for (int64_t k = first; k < rows.count; k += 4) {
      const auto add = k + 4 < rows.count ? add_rows<Phi, T, false, false, 4, Acc>
                                          : add_rows<Phi, T, false, true, 4, Acc>;
      add(rows, k, x, H, total, squares);
    }
    return;
  }
  Acc part[kMostColumns], unused[2 * kMostColumns] = {};
  for (int64_t j = 0; j < x.count; ++j) H[j] = 0;
  for (int64_t begin = 0; begin < rows.count; begin += kPieceRows) {
    const ClassRows<Acc> piece{
        rows.order + begin, rows.share + begin, std::min(kPieceRows, rows.count - begin)};
    class_mean<Phi, T>(piece, x, part, unused, unused + kMostColumns);
    for (int64_t j = 0; j < x.count; ++j) H[j] += part[j];
  }
  for (int64_t j = 0; j < x.count; ++j) {
    total[j] += H[j];
    squares[j] += H[j] * H[j];
  }
}

template <typename Acc>
inline Vector<Acc> gradient_at(const GradientRow<Acc>& G, int64_t j) {
  const Vector<Acc> P = load(G.slope + j) * load(G.H + j);
  return load(G.inverse + j) * (load(G.constant + j) + G.factor * P + G.offset);
}

// R rows, each vector of G computed once for all of them and never stored.
template <typename Phi, typename T, int R, typename Acc>
inline void write_some_rows(
    const ClassRows<Acc>& rows, int64_t k, Columns<const void*> x, const GradientRow<Acc>& G,
    Columns<void*> dx, bool stream_rows) {
  const T* row[R];
  T* to[R];
  Acc share[R];
  for (int r = 0; r < R; ++r) {
    row[r] = static_cast<const T*>(x.data) + rows.order[k + r] * x.row_stride;
    to[r] = static_cast<T*>(dx.data) + rows.order[k + r] * dx.row_stride;
    share[r] = rows.share[k + r];
  }
  const auto value_at = [=](int r, int64_t j, auto columns, Vector<Acc> g) {
    return narrow<T>(Phi::template pull_back<Acc>(read(row[r] + j, columns), g * share[r]));
  };
  if (!stream_rows) {
    return for_each_vector<Acc>(x.count, [=](int64_t j, auto columns) {
      const Vector<Acc> g = gradient_at(G, j);
      for (int r = 0; r < R; ++r) {
        const auto value = value_at(r, j, columns, g);
        std::memcpy(to[r] + j, &value, columns * sizeof(T));
      }
    });
  }
  // A line of each row at once: one that was left half streamed would go to memory in pieces.
  constexpr std::integral_constant<int64_t, kLanes<Acc>> whole;
  constexpr int64_t kVectors = kLine / sizeof(T) / whole;
  for (int64_t j = 0; j < x.count; j += kVectors * whole) {
    Vector<Acc> g[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) g[v] = gradient_at(G, j + v * whole);
    for (int r = 0; r < R; ++r) {
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t at = j + v * whole;
        stream(to[r] + at, value_at(r, at, whole, g[v]));
      }
    }
  }
}

template <typename Phi, typename T, typename Acc>
void write_rows(
    const ClassRows<Acc>& rows, Columns<const void*> x, const GradientRow<Acc>& G,
    Columns<void*> dx, bool stream_rows) {
  int64_t k = 0;
  for (; k + 2 <= rows.count; k += 2) {
    write_some_rows<Phi, T, 2>(rows, k, x, G, dx, stream_rows);
  }
  if (k < rows.count) write_some_rows<Phi, T, 1>(rows, k, x, G, dx, stream_rows);
}

// ---------------------------------------------------------------- rows of the table

template <typename Acc>
void sum_rows(const Acc* table, int64_t rows, int64_t stride, int64_t width, Acc* sum) {
  for (int64_t j = 0; j < width; j += kLanes<Acc>) {
    Vector<Acc> value{};
    for (int64_t k = 0; k < rows; ++k) value += load(table + k * stride + j);
    store(sum + j, value);
  }
}

template <typename Acc>
bool normalize(const Acc* total, int64_t width, Acc* inverse, Acc* squares) {
  // Squares of numbers in this range, and sums of them, are accurate.
  constexpr Acc kLow = sizeof(Acc) == 4 ? Acc(1e-15) : Acc(1e-140);
  constexpr Acc kHigh = sizeof(Acc) == 4 ? Acc(1e15) : Acc(1e140);
  constexpr Acc kLargest = std::numeric_limits<Acc>::max();
  Bits<Acc> extreme{};
  for (int64_t j = 0; j < width; j += kLanes<Acc>) {
    const Vector<Acc> T = load(total + j);
    const Vector<Acc> reciprocal = Acc(1) / T;
    // An infinite total gives NaN: it must not pass for a dead feature's 0.
    const Vector<Acc> live = reciprocal > kLargest ? Vector<Acc>{} : reciprocal + Acc(0) * T;
    store(inverse + j, live);
    const Vector<Acc> square = load(squares + j) * live * live;
    store(squares + j, square > 1 ? Vector<Acc>{} + 1 : square);  // by rounding; NaN passes
    extreme |= reinterpret_cast<Bits<Acc>>(((T < kLow) | (T > kHigh)) & (T != Vector<Acc>{}));
  }
  bool any = false;
  for (int64_t k = 0; k < kLanes<Acc>; ++k) any |= extreme[k] != 0;
  return any;
}

template <typename Acc>
Acc dot(const Acc* H, const Acc* inverse, int64_t width) {
  constexpr int64_t L = kLanes<Acc>;
  constexpr int kSums = kPadding / L < 4 ? 4 : kPadding / L;
  Vector<Acc> sum[kSums] = {};
  int64_t j = 0;
  for (; j + kSums * L <= width; j += kSums * L) {
    for (int k = 0; k < kSums; ++k) sum[k] += load(H + j + k * L) * load(inverse + j + k * L);
  }
  for (int k = 0; j < width; j += L, ++k) sum[k] += load(H + j) * load(inverse + j);
  for (int k = 1; k < kSums; ++k) sum[0] += sum[k];
  return sum_of_lanes<Acc>(sum[0]);
}

template <typename Acc>
void add_weighted(
    const ClassRows<Acc>& rows, Columns<const Acc*> table, const Acc* scale, Acc* sum) {
  for (int64_t k = 0; k < rows.count; k += 4) {
    with_constant(std::min<int64_t>(4, rows.count - k), [=](auto R) {
      const Acc* row[R];
      for (int r = 0; r < R; ++r) row[r] = table.data + rows.order[k + r] * table.row_stride;
      for (int64_t j = 0; j < table.count; j += kLanes<Acc>) {
        Vector<Acc> value = load(sum + j);
        const Vector<Acc> factor = load(scale + j);  // first: share_k table_k may overflow
        for (int r = 0; r < R; ++r) value += rows.share[k + r] * (factor * load(row[r] + j));
        store(sum + j, value);
      }
    });
  }
}

template <typename Acc>
void store_gradient_row(const GradientRow<Acc>& G, int64_t width, Acc* out) {
  for (int64_t j = 0; j < width; j += kLanes<Acc>) store(out + j, gradient_at(G, j));
}

// ---------------------------------------------------------------- the set

template <FeatureType type, typename T, typename Acc>
constexpr void set_type(Kernels<Acc>& kernels) {
  kernels.class_mean[kAbs][type] = class_mean<Abs, T, Acc>;
  kernels.class_mean[kRelu][type] = class_mean<Relu, T, Acc>;
  kernels.write_rows[kAbs][type] = write_rows<Abs, T, Acc>;
  kernels.write_rows[kRelu][type] = write_rows<Relu, T, Acc>;
}

template <typename Acc>
constexpr Kernels<Acc> make_kernels() {
  Kernels<Acc> kernels{};
  set_type<kAccumulated, Acc>(kernels);
  if constexpr (sizeof(Acc) == 4) {
    set_type<kHalf, Half>(kernels);
    set_type<kBFloat16, BFloat16>(kernels);
  }
  kernels.sum_rows = sum_rows<Acc>;
  kernels.normalize = normalize<Acc>;
  kernels.dot = dot<Acc>;
  kernels.add_weighted = add_weighted<Acc>;
  kernels.store_gradient_row = store_gradient_row<Acc>;
  return kernels;
}

extern const KernelSet kernel_set;
constexpr KernelSet kernel_set{make_kernels<float>(), make_kernels<double>()};

}  // namespace discfused::cpu::DISCFUSED_ISA
