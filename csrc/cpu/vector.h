// Vectors of the width that DISCFUSED_VECTOR_BYTES names, in namespace discfused::cpu::<isa>.
//
// GNU vector types rather than intrinsics: gcc and clang lower them to any instruction set.
// Included by kernels_impl.h only.
#pragma once

namespace discfused::cpu::DISCFUSED_ISA {

// In a struct because an alias cannot carry the attribute.
template <typename T>
struct VectorOf {
  using Integer = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  typedef T Type __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
  typedef Integer Bits __attribute__((vector_size(DISCFUSED_VECTOR_BYTES)));
};

template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using Bits = typename VectorOf<T>::Bits;

template <typename T>
constexpr int64_t kLanes = DISCFUSED_VECTOR_BYTES / sizeof(T);

// memcpy is how to say "unaligned" to the compiler: it becomes one instruction. A cast from vector
// to vector keeps the bits.
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

// A 1 in the place of the sign, and 0 elsewhere.
template <typename T>
inline Bits<T> sign_mask() {
  return ~(~Bits<T>{} >> 1);
}

// The sum of all lanes, by halves.
template <typename T>
inline T sum_of_lanes(Vector<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof v);
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}

// Stores past the caches, for what is too large to be found there again: the processor need not
// read a line before it overwrites it. `to` is aligned to the size of v.
template <typename V>
inline void stream(void* to, V v) {
#ifdef DISCFUSED_X86
  if constexpr (sizeof v == sizeof(__m512i)) {
    return _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
  } else if constexpr (sizeof v == sizeof(__m256i)) {
    return _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
  } else if constexpr (sizeof v == sizeof(__m128i)) {
    return _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
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
  return reinterpret_cast<Vector<float>>(
      __builtin_convertvector(load_bits(from), Bits<float>) << 16);
}

inline Vector<float> widen(const Half* from) {
  const Bits<float> half = __builtin_convertvector(load_bits(from), Bits<float>);
  const Bits<float> sign = (half & 0x8000) << 16;
  const Bits<float> magnitude = (half & 0x7fff) << 13;
  // The exponent is 112 too small. That of a subnormal number is normalised by a difference of
  // normal ones: as a float it would be subnormal, too, which torch.set_flush_denormal makes 0.
  const Vector<float> subnormal =
      reinterpret_cast<Vector<float>>(magnitude + 0x38800000) - 0x1p-14f;
  const Bits<float> finite =
      magnitude < 0x00800000 ? reinterpret_cast<Bits<float>>(subnormal) : magnitude + 0x38000000;
  const Bits<float> special = magnitude | 0x7f800000;
  return reinterpret_cast<Vector<float>>(sign | (magnitude >= 0x0f800000 ? special : finite));
}

inline HalfBits to_bfloat16(Vector<float> v) {
  const Bits<float> bits = reinterpret_cast<Bits<float>>(v);
  // Half a unit, or a hair less where the last kept bit is 0: round to nearest even.
  const Bits<float> rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits<float> nan = bits >> 16 | 0x40;
  return __builtin_convertvector(v == v ? rounded : nan, HalfBits);
}

inline HalfBits to_half(Vector<float> v) {
  const Bits<float> bits = reinterpret_cast<Bits<float>>(v);
  const Bits<float> sign = bits >> 16 & 0x8000;
  const Bits<float> magnitude = bits & 0x7fffffff;
  // Below 2^-14 the result is subnormal: adding 0.5 lets the processor round at its last bit.
  const Bits<float> subnormal =
      reinterpret_cast<Bits<float>>(reinterpret_cast<Vector<float>>(magnitude) + 0.5f) - 0x3f000000;
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

}  // namespace discfused::cpu::DISCFUSED_ISA
