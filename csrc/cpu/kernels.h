// The inner loops of the CPU backend: compiled once per instruction set, chosen at run time.
//
// No ATen here: what library headers define inline must not be compiled for another processor.
// Rows of the accumulation type (of the table, of sums) are padded with zeros to a multiple of
// kPadding numbers, so that loops over them see whole vectors.
#pragma once

// Those of kernels_impl.h, too: it is compiled for another processor.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#if defined(__x86_64__) || defined(_M_X64)
#define DISCFUSED_X86 1
#endif

namespace discfused::cpu {

constexpr int64_t kPadding = 16;
constexpr int64_t kLine = 64;  // bytes of a line of the caches
// Of a tile: the vectors that all its rows meet stay in the first-level cache.
constexpr int64_t kMostColumns = 2048;

inline int64_t padded(int64_t columns) { return (columns + kPadding - 1) / kPadding * kPadding; }

// The values of `activation` in the operators: the places in ACTIVATIONS of _definitions.py.
enum Activation : int { kAbs, kRelu, kActivations };

// Element types of features.
enum FeatureType : int { kAccumulated, kHalf, kBFloat16, kFeatureTypes };

// The samples of a class: row order[k] of a matrix counts share[k] = m_ic / n_c.
template <typename Acc>
struct ClassRows {
  const int64_t* order;
  const Acc* share;
  int64_t count;
};

// Some columns of a matrix; row i starts at data + i * row_stride elements.
template <typename Pointer>
struct Columns {
  Pointer data;
  int64_t row_stride;
  int64_t count;
};

// A row of the table's gradient: G_j = inverse_j (constant_j + factor slope_j H_j + offset)
template <typename Acc>
struct GradientRow {
  const Acc *inverse, *constant, *slope, *H;
  Acc factor, offset;
};

template <typename Acc>
struct Kernels {
  // H = sum_k share_k phi(x_k), total += H, squares += H^2, of kMostColumns at most
  using ClassMean = void (*)(
      const ClassRows<Acc>& rows, Columns<const void*> x, Acc* H, Acc* total, Acc* squares);
  ClassMean class_mean[kActivations][kFeatureTypes];

  // sum = sum over rows k of table [rows, stride], in their order
  void (*sum_rows)(const Acc* table, int64_t rows, int64_t stride, int64_t width, Acc* sum);

  // inverse = 1 / total, or 0 for a dead feature; squares: sum_c H_c^2 -> sum_c P_c^2. Returns
  // whether a total is so large or small that the squares of H may have left Acc's range.
  bool (*normalize)(const Acc* total, int64_t width, Acc* inverse, Acc* squares);

  // sum_j H_j inverse_j
  Acc (*dot)(const Acc* H, const Acc* inverse, int64_t width);

  // sum += sum_k share_k scale table_k
  void (*add_weighted)(
      const ClassRows<Acc>& rows, Columns<const Acc*> table, const Acc* scale, Acc* sum);

  // out = G
  void (*store_gradient_row)(const GradientRow<Acc>& G, int64_t width, Acc* out);

  // dx_k = share_k phi'(x_k) G; `stream`: past the caches, where rows of dx are aligned to it
  using WriteRows = void (*)(
      const ClassRows<Acc>& rows, Columns<const void*> x, const GradientRow<Acc>& G,
      Columns<void*> dx, bool stream);
  WriteRows write_rows[kActivations][kFeatureTypes];
};

// The kernels for one instruction set.
using KernelSet = std::tuple<Kernels<float>, Kernels<double>>;

// The kernels for the processor at hand.
template <typename Acc>
const Kernels<Acc>& kernels();

// What a thread has streamed is not ordered with its other memory accesses until then.
void fence_streams();

}  // namespace discfused::cpu
