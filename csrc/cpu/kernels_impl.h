// The kernels of kernels.h, for one instruction set. The translation unit that includes this
// header has included every library header before, switched the compiler to the instruction set,
// and defined DISCFUSED_ISA (a namespace of its own) and DISCFUSED_VECTOR_BYTES.

#pragma once

#include "cpu/backward_kernels.h"
#include "cpu/correlation_kernels.h"
#include "cpu/forward_kernels.h"
#include "cpu/vector.h"
#include "disc_math.h"

namespace discfused::cpu::DISCFUSED_ISA {

// ---------------------------------------------------------------- the table

template <typename Acc>
void summarize(
    const Table<const Acc>& table, int64_t slots, const Acc* mass, const Acc* magnitude, Acc eps,
    Span span, Acc* inverse, Acc* squares, Acc* class_sum) {
  for (int64_t slot = 0; slot < slots; ++slot) class_sum[slot] = 0;
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> scale[K];
    for (int k = 0; k < K; ++k) {
      const Vector<Acc> m = group.load(magnitude, k);
      group.store(inverse, k, live_reciprocal(total_mass(group.load(mass, k), m), m, eps));
    }
    // What pads a block has activations as well, if phi(0) is not 0.
    for (int64_t j = span.columns; j < span.width; ++j) inverse[j] = 0;
    for (int k = 0; k < K; ++k) scale[k] = group.load(inverse, k);
    // Two levels of sums: kChunkRows slots, then the rest.
    Vector<Acc> square_sum[K] = {};
    for (int64_t first = 0; first < slots; first += kChunkRows) {
      const int64_t last = first + kChunkRows < slots ? first + kChunkRows : slots;
      Vector<Acc> sums[K] = {};
      for (int64_t slot = first; slot < last; ++slot) {
        const Acc* row = table.data + slot * table.stride;
        Vector<Acc> features{};
        for (int k = 0; k < K; ++k) {
          const Vector<Acc> P = scale[k] * group.load(row, k);
          sums[k] += P * P;
          features += P;
        }
        class_sum[slot] += Lanes<Acc>::sum(features);
      }
      for (int k = 0; k < K; ++k) square_sum[k] += sums[k];
    }
    for (int k = 0; k < K; ++k) group.store(squares, k, square_sum[k]);
  });
}

// ---------------------------------------------------------------- the set

static_assert(static_cast<int>(Activation::kSigmoid) + 1 == kActivations);

template <Activation A, FeatureType type, typename T, typename Acc>
constexpr void set_type(Kernels<Acc>& kernels) {
  constexpr int code = static_cast<int>(A);
  kernels.pack[type] = pack<Acc, T>;
  kernels.moments[code][type] = moments<Acc, A, T>;
  kernels.stripe_moments[code][type] = stripe_moments<Acc, A, T>;
  kernels.gather[code][type] = gather<Acc, A, T>;
  kernels.gather_signs[type] = gather_signs<Acc, T>;
  kernels.write[code][type] = write<Acc, A, T>;
  kernels.write_signs[type] = write_signs<Acc, T>;
  kernels.write_spread[code][type] = write_spread<Acc, A, T>;
}

template <Activation A, typename Acc>
constexpr void set_activation(Kernels<Acc>& kernels) {
  constexpr int code = static_cast<int>(A);
  kernels.gather_slopes[code] = gather_slopes<Acc, A>;
  kernels.activate[code] = activate<Acc, A>;
  kernels.differentiate[code] = differentiate<Acc, A>;
  set_type<A, kAccumulated, Acc>(kernels);
  if constexpr (sizeof(Acc) == sizeof(float)) {
    set_type<A, kHalf, Half>(kernels);
    set_type<A, kBFloat16, BFloat16>(kernels);
  }
}

template <typename Acc>
constexpr Kernels<Acc> make_kernels() {
  Kernels<Acc> kernels{};
  set_activation<Activation::kRelu>(kernels);
  set_activation<Activation::kAbs>(kernels);
  set_activation<Activation::kSquare>(kernels);
  set_activation<Activation::kSoftplus>(kernels);
  set_activation<Activation::kSigmoid>(kernels);
  kernels.gather_entries = gather_entries<Acc>;
  kernels.correlate_signs = correlate_signs<Acc>;
  kernels.spread = spread<Acc>;
  kernels.summarize = summarize<Acc>;
  kernels.correlate = correlate<Acc>;
  return kernels;
}

extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = make_kernels<float>();
const Kernels<double> kernels_double = make_kernels<double>();

}  // namespace discfused::cpu::DISCFUSED_ISA
