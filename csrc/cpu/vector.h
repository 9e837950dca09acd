// Vectors of the width that DISCFUSED_VECTOR_BYTES names, in namespace discfused::cpu::<isa>.
//
// GNU vector types rather than intrinsics: gcc and clang lower them to any instruction set.
// Included by kernels_impl.h only.
#pragma once

#include "disc_math.h"

namespace discfused::cpu::DISCFUSED_ISA {

template <typename T>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
};

template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using Bits = typename VectorOf<T>::Bits;

template <typename T>
constexpr int64_t kLanes = DISCFUSED_VECTOR_BYTES / sizeof(T);

// memcpy is how to say "unaligned" to the compiler: it becomes one instruction.
template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
inline Vector<T> clear_sign(Vector<T> v) {
  return bits_as<Vector<T>>(bits_as<Bits<T>>(v) & ~Bits<T>{} >> 1);
}

// The sum of all lanes, by halves. Inner types because an alias cannot carry the attribute.
template <typename T, int64_t kBytes = DISCFUSED_VECTOR_BYTES>
struct Lanes {
  typedef T All __attribute__((vector_size(kBytes)));
  typedef T HalfOfAll __attribute__((vector_size(kBytes / 2)));

  static T sum(All v) {
    if constexpr (kBytes > 16) {
      HalfOfAll halves[2];
      std::memcpy(halves, &v, sizeof v);
      return Lanes<T, kBytes / 2>::sum(halves[0] + halves[1]);
    } else if constexpr (sizeof(T) == 4) {
      return (v[0] + v[1]) + (v[2] + v[3]);
    } else {
      return v[0] + v[1];
    }
  }
};

// One bit for every lane in which v is above 0, or NaN: the first lane's lowest.
template <typename T>
inline uint64_t positive_bits(Vector<T> v) {
#ifdef DISCFUSED_X86
  constexpr bool kSingle = sizeof(T) == 4;
  if constexpr (sizeof v == sizeof(__m512i)) {
    if constexpr (kSingle)
      return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    else
      return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NLE_UQ);
  } else if constexpr (sizeof v == sizeof(__m256i)) {
    const auto above = !(v <= Vector<T>{});
    if constexpr (kSingle)
      return _mm256_movemask_ps(bits_as<__m256>(above));
    else
      return _mm256_movemask_pd(bits_as<__m256d>(above));
  } else if constexpr (sizeof v == sizeof(__m128i)) {
    const auto above = !(v <= Vector<T>{});
    if constexpr (kSingle)
      return _mm_movemask_ps(bits_as<__m128>(above));
    else
      return _mm_movemask_pd(bits_as<__m128d>(above));
  }
#endif
  uint64_t bits = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) bits |= uint64_t{!(v[lane] <= 0)} << lane;
  return bits;
}

// v in the lanes whose bit is set, 0 in the others
template <typename T>
inline Vector<T> where_set(uint64_t bits, Vector<T> v) {
#ifdef DISCFUSED_X86
  if constexpr (sizeof v == sizeof(__m512i)) {
    if constexpr (sizeof(T) == 4)
      return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
    else
      return _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), v);
  }
#endif
  Bits<T> lane_bit{};
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) lane_bit[lane] = 1u << lane;
  const auto word = static_cast<std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>(bits);
  return ((Bits<T>{} + word) & lane_bit) != 0 ? v : Vector<T>{};
}

// Stores past the caches, for what is too large to be found there again: the processor need not
// read a line before it overwrites it. `to` is aligned to the size of v.
template <typename V>
inline void stream(void* to, V v) {
#ifdef DISCFUSED_X86
  if constexpr (sizeof v == sizeof(__m512i)) {
    _mm512_stream_si512(static_cast<__m512i*>(to), bits_as<__m512i>(v));
    return;
  } else if constexpr (sizeof v == sizeof(__m256i)) {
    _mm256_stream_si256(static_cast<__m256i*>(to), bits_as<__m256i>(v));
    return;
  } else if constexpr (sizeof v == sizeof(__m128i)) {
    _mm_stream_si128(static_cast<__m128i*>(to), bits_as<__m128i>(v));
    return;
  }
#endif
  std::memcpy(to, &v, sizeof v);
}

// ---------------------------------------------------------------- half precision, through float

typedef uint16_t HalfBits __attribute__((vector_size(DISCFUSED_VECTOR_BYTES / 2)));

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
inline HalfBits load_bits(const T* from) {
  HalfBits v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// widen(from) loads a vector of the accumulation type; narrow<T>(v) rounds one to T's bits.

inline Vector<float> widen(const float* from) { return load(from); }
inline Vector<double> widen(const double* from) { return load(from); }

inline Vector<float> widen(const BFloat16* from) {
  return bits_as<Vector<float>>(__builtin_convertvector(load_bits(from), Bits<float>) << 16);
}

inline Vector<float> widen(const Half* from) {
  const Bits<float> half = __builtin_convertvector(load_bits(from), Bits<float>);
  const Bits<float> sign = (half & 0x8000) << 16;
  const Bits<float> magnitude = (half & 0x7fff) << 13;
  // The exponent is 112 too small. A product corrects it and normalises subnormal numbers.
  const Bits<float> finite = bits_as<Bits<float>>(bits_as<Vector<float>>(magnitude) * 0x1p112f);
  const Bits<float> special = magnitude | 0x7f800000;
  return bits_as<Vector<float>>(sign | (magnitude >= 0x0f800000 ? special : finite));
}

inline HalfBits to_bfloat16(Vector<float> v) {
  const Bits<float> bits = bits_as<Bits<float>>(v);
  // Half a unit, or a hair less where the last kept bit is 0: round to nearest even.
  const Bits<float> rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits<float> nan = bits >> 16 | 0x40;
  return __builtin_convertvector(v == v ? rounded : nan, HalfBits);
}

inline HalfBits to_half(Vector<float> v) {
  const Bits<float> bits = bits_as<Bits<float>>(v);
  const Bits<float> sign = bits >> 16 & 0x8000;
  const Bits<float> magnitude = bits & 0x7fffffff;
  // Below 2^-14 the result is subnormal: adding 0.5 lets the processor round at its last bit.
  const Bits<float> subnormal =
      bits_as<Bits<float>>(bits_as<Vector<float>>(magnitude) + 0.5f) - 0x3f000000;
  const Bits<float> normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const Bits<float> nan = Bits<float>{} + 0x7e00;
  const Bits<float> infinity = Bits<float>{} + 0x7c00;
  // From 65520 on, the nearest half is infinity.
  Bits<float> half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? infinity : half;
  half = magnitude > 0x7f800000 ? nan : half;
  return __builtin_convertvector(half | sign, HalfBits);
}

template <typename T, typename V>
inline auto narrow(V v) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(v);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(v);
  } else {
    return v;
  }
}

// ---------------------------------------------------------------- exp and log1p

// How 2^k is written in T, and how many terms of a series reach T's last bit.
template <typename T>
struct Exponent;

template <>
struct Exponent<float> {
  static constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer
  static constexpr float kLowest = -87.0f;    // below it exp(x) is taken for 0
  static constexpr int kMantissa = 23, kBias = 127, kExpTerms = 7, kLogTerms = 8;
};

template <>
struct Exponent<double> {
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLowest = -708.0;
  static constexpr int kMantissa = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 17;
};

// exp(x) = 2^k exp(r) with |r| <= log(2) / 2, and the Taylor series of exp(r).
template <typename T>
inline Vector<T> exp_series(Vector<T> x) {
  using E = Exponent<T>;
  const Vector<T> shifted = x * T(1.44269504088896340736) + E::kRound;
  const Vector<T> k = shifted - E::kRound;
  // log(2) in two parts; the first has so few bits that k times it is exact.
  const Vector<T> r = (x - k * T(0.693145751953125)) - k * T(1.42860682030941723212e-6);
  Vector<T> sum = Vector<T>{} + T(1);
  for (int n = E::kExpTerms; n > 0; --n) sum = sum * r * T(1.0 / n) + T(1);
  // The low bits of `shifted` are k, in two's complement: no conversion that NaN could upset.
  const Bits<T> scale = (bits_as<Bits<T>>(shifted) + E::kBias) << E::kMantissa;
  return x < E::kLowest ? Vector<T>{} : sum * bits_as<Vector<T>>(scale);
}

// log(1 + x) = 2 atanh(s) with s = x / (2 + x) <= 1/3, and the Taylor series of atanh(s) / s.
template <typename T>
inline Vector<T> log1p_series(Vector<T> x) {
  const Vector<T> s = x / (x + T(2));
  const Vector<T> square = s * s;
  Vector<T> sum{};
  for (int n = Exponent<T>::kLogTerms; n >= 0; --n) sum = sum * square + T(1.0 / (2 * n + 1));
  return s * sum * T(2);
}

}  // namespace discfused::cpu::DISCFUSED_ISA

namespace discfused {

namespace isa = cpu::DISCFUSED_ISA;

#define DISCFUSED_FOR_VECTORS(function, kernel, T)                   \
  template <>                                                        \
  inline isa::Vector<T> function<isa::Vector<T>>(isa::Vector<T> x) { \
    return isa::kernel<T>(x);                                        \
  }
DISCFUSED_FOR_VECTORS(absolute, clear_sign, float)
DISCFUSED_FOR_VECTORS(absolute, clear_sign, double)
DISCFUSED_FOR_VECTORS(exp_nonpositive, exp_series, float)
DISCFUSED_FOR_VECTORS(exp_nonpositive, exp_series, double)
DISCFUSED_FOR_VECTORS(log1p_unit, log1p_series, float)
DISCFUSED_FOR_VECTORS(log1p_unit, log1p_series, double)
#undef DISCFUSED_FOR_VECTORS

}  // namespace discfused
