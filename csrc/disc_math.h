// The mathematics of one element, one feature and one class, shared by the CPU and CUDA kernels.
//
// T is float or double, and on the CPU also a GNU vector of them: a comparison then gives a mask,
// ?: selects lane by lane, and T{} is 0 in every lane. Comparisons are arranged so that NaN passes.
#pragma once

#include <cmath>
#include <limits>

// static: every translation unit owns its copy, compiled for its own instruction set. An inline
// function would be merged by the linker, and a processor without AVX-512 could meet that version.
#if defined(__CUDACC__) || defined(__HIPCC__)
#define DISCFUSED_HD static inline __host__ __device__
#else
#define DISCFUSED_HD static inline
#endif

namespace discfused {

// In the order of ACTIVATIONS in discfused/backends/contract.py.
enum class Activation : int { kRelu, kAbs, kSquare, kSoftplus, kSigmoid };

// The denominator inside a logarithm is never smaller.
constexpr double kProbabilityFloor = 1e-8;

// ---------------------------------------------------------------- one element

// |x|, exp(x) for x <= 0, and log(1 + x) for 0 <= x <= 1. cpu/vector.h has them for vectors.
template <typename T>
DISCFUSED_HD T absolute(T x) {
  return x < T{} ? -x : x;
}

template <typename T>
DISCFUSED_HD T exp_nonpositive(T x) {
  return std::exp(x);
}

template <typename T>
DISCFUSED_HD T log1p_unit(T x) {
  return std::log1p(x);
}

// phi(x)
template <Activation A, typename T>
DISCFUSED_HD T activate(T x) {
  if constexpr (A == Activation::kRelu) {
    return x <= T{} ? T{} : x;  // the comparison of pull_back, so that one serves for both
  } else if constexpr (A == Activation::kAbs) {
    return absolute<T>(x);
  } else if constexpr (A == Activation::kSquare) {
    return x * x;
  } else {
    // exp(-|x|) cannot overflow.
    const T decay = exp_nonpositive<T>(-absolute<T>(x));
    if constexpr (A == Activation::kSoftplus) {
      return (x < T{} ? T{} : x) + log1p_unit<T>(decay);
    } else {
      return (x < T{} ? decay : T{} + 1.0f) / (1.0f + decay);
    }
  }
}

// phi'(x) * g
template <Activation A, typename T>
DISCFUSED_HD T pull_back(T x, T g) {
  if constexpr (A == Activation::kRelu) {
    return x <= T{} ? T{} : g;
  } else if constexpr (A == Activation::kAbs) {
    return x > T{} ? g : (x < T{} ? -g : x * g);
  } else if constexpr (A == Activation::kSquare) {
    return 2.0f * x * g;
  } else {
    const T decay = exp_nonpositive<T>(-absolute<T>(x));
    const T scale = 1.0f / (1.0f + decay);
    if constexpr (A == Activation::kSoftplus) {
      return (x < T{} ? decay : T{} + 1.0f) * scale * g;
    } else {
      return decay * scale * scale * g;
    }
  }
}

// How large x is, in the power of x that phi(x) grows with: what a feature's mass is compared with.
template <Activation A, typename T>
DISCFUSED_HD T size_of(T x) {
  if constexpr (A == Activation::kSquare) {
    return x * x;
  } else {
    return absolute<T>(x);
  }
}

// ---------------------------------------------------------------- one feature

// T_j with what makes an infinite feature NaN: infinity times 0. It must not pass for a dead one.
template <typename T>
DISCFUSED_HD T total_mass(T table_sum, T magnitude) {
  return table_sum + 0.0f * magnitude;
}

// 1 / T_j of a live feature and 0 of a dead one, which drops it from every product. So is one whose
// reciprocal could overflow.
template <typename T, typename Scalar>
DISCFUSED_HD T live_reciprocal(T total, T magnitude, Scalar eps) {
  constexpr Scalar kSmallest = std::numeric_limits<Scalar>::min();
  return total <= eps * magnitude + kSmallest ? T{} : 1.0f / total;
}

// 1 - sum_c P_cj^2, which rounding must not carry out of [0, 1].
template <typename T>
DISCFUSED_HD T gini_impurity(T sum_of_squares) {
  const T impurity = 1.0f - sum_of_squares;
  return impurity < T{} ? T{} : (impurity > 1.0f ? T{} + 1.0f : impurity);
}

// The gradient of the table for one feature:
//
//   G_cj = 1 / (L T_j) * (2 g1 (sum_k P_kj^2 - P_cj) + g2 (A_c - sum_k A_k P_kj))
//        = outer * (constant + slope * H_cj + g2 A_c)
//
// g1 and g2 are the upstream gradients of gini and kl with their weights. 1 / (L T_j) multiplies
// last: next to 1 / T_j it overflows for a feature that is small but live.
template <typename T>
struct FeaturePull {
  T outer;
  T constant;
  T slope;
};

// scale = 1 / (L T_j), inverse = 1 / T_j, squares = sum_c P_cj^2, projection = sum_c A_c P_cj
template <typename T, typename Scalar>
DISCFUSED_HD FeaturePull<T> feature_pull(
    T scale, T inverse, T squares, T projection, Scalar g1, Scalar g2) {
  return {scale, 2.0f * g1 * squares - g2 * projection, -2.0f * g1 * inverse};
}

// G_cj; slot_offset = g2 A_c. A dead feature has outer = 0 and gets 0 even where A_c is NaN.
template <typename T, typename Offset>
DISCFUSED_HD T table_gradient(T outer, T constant, T slope, T table, Offset slot_offset) {
  return outer == T{} ? T{} : outer * (constant + slope * table + slot_offset);
}

// ---------------------------------------------------------------- one class

template <typename T>
DISCFUSED_HD T floored(T probability) {
  return probability < T(kProbabilityFloor) ? T(kProbabilityFloor) : probability;
}

// p log(p / q), one term of KL(p || q)
template <typename T>
DISCFUSED_HD T divergence_term(T p, T q) {
  return p == T(0) ? T(0) : p * std::log(p / floored(q));
}

// A_c = d KL / d q_c, less what is the same for every class and so cancels in G. A clamped q_c
// passes no gradient.
template <typename T>
DISCFUSED_HD T divergence_slope(T prior, T q, bool reverse) {
  if (reverse) return q == T(0) ? T(0) : std::log(q / floored(prior));
  return q < T(kProbabilityFloor) ? T(0) : -prior / q;
}

// A divergence is never negative; rounding can leave it a hair below 0.
template <typename T>
DISCFUSED_HD T nonnegative(T value) {
  return value < T(0) ? T(0) : value;
}

}  // namespace discfused
