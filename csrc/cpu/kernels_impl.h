// The kernels of kernels.h, for one instruction set. The translation unit that includes this
// header has included every library header before, switched the compiler to the instruction set,
// and defined DISCFUSED_ISA (a namespace of its own) and DISCFUSED_VECTOR_BYTES.

#pragma once

#include "cpu/row_kernels.h"
#include "cpu/vector.h"
#include "disc_math.h"

namespace discfused::cpu::DISCFUSED_ISA {

// ---------------------------------------------------------------- the table

// Adds up the slots in two levels: add(slot, sums) adds one of them.
template <typename Acc, int K, typename Add>
inline void sum_over_slots(int64_t slots, Vector<Acc> (&total)[K], Add add) {
  for (int64_t first = 0; first < slots; first += kChunkRows) {
    const int64_t last = first + kChunkRows < slots ? first + kChunkRows : slots;
    Vector<Acc> sums[K] = {};
    for (int64_t slot = first; slot < last; ++slot) add(slot, sums);
    for (int k = 0; k < K; ++k) total[k] += sums[k];
  }
}

template <typename Acc>
void summarize(
    const Table<const Acc>& table, int64_t slots, const Acc* magnitude, Acc eps, Span span,
    Acc* inverse, Acc* squares, Acc* class_sum) {
  for (int64_t slot = 0; slot < slots; ++slot) class_sum[slot] = 0;
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> total[K] = {}, scale[K], square_sum[K] = {};
    sum_over_slots<Acc>(slots, total, [&](int64_t slot, Vector<Acc>(&sums)[K]) {
      const Acc* row = table.data + slot * table.stride;
      for (int k = 0; k < K; ++k) sums[k] += group.load_table(row, k);
    });
    for (int k = 0; k < K; ++k) {
      const Vector<Acc> m = group.load_packed(magnitude, k);
      scale[k] = live_reciprocal(total_mass(total[k], m), m, eps);
      group.store_packed(inverse, k, scale[k]);
    }
    sum_over_slots<Acc>(slots, square_sum, [&](int64_t slot, Vector<Acc>(&sums)[K]) {
      const Acc* row = table.data + slot * table.stride;
      Vector<Acc> features{};
      for (int k = 0; k < K; ++k) {
        const Vector<Acc> P = scale[k] * group.load_table(row, k);
        sums[k] += P * P;
        features += P;
      }
      class_sum[slot] += Lanes<Acc>::sum(features);
    });
    for (int k = 0; k < K; ++k) group.store_packed(squares, k, square_sum[k]);
  });
}

template <typename Acc>
void project(
    const Table<const Acc>& table, int64_t slots, const Acc* slot_coef, Span span,
    Acc* projection) {
  for_each_group<Acc>(span, [&](auto group) {
    constexpr int K = group.kVectors;
    Vector<Acc> total[K] = {};
    sum_over_slots<Acc>(slots, total, [&](int64_t slot, Vector<Acc>(&sums)[K]) {
      const Acc* row = table.data + slot * table.stride;
      for (int k = 0; k < K; ++k) sums[k] += slot_coef[slot] * group.load_table(row, k);
    });
    for (int k = 0; k < K; ++k) group.store_packed(projection, k, total[k]);
  });
}

// ---------------------------------------------------------------- the set

static_assert(static_cast<int>(Activation::kSigmoid) + 1 == kActivations);

template <Activation A, typename Acc>
constexpr void set_activation(Kernels<Acc>& kernels) {
  constexpr int code = static_cast<int>(A);
  kernels.moments[code] = moments<Acc, A>;
  kernels.gather[code] = gather<Acc, Centered<A>>;
  kernels.activate[code] = activate<Acc, A>;
  kernels.differentiate[code] = differentiate<Acc, A>;
  kernels.pull_back[code] = pull_back<Acc, A>;
}

template <typename Acc>
constexpr Kernels<Acc> make_kernels() {
  Kernels<Acc> kernels{};
  kernels.pack[kAccumulated] = pack<Acc, Acc>;
  kernels.unpack[kAccumulated] = unpack<Acc, Acc>;
  if constexpr (sizeof(Acc) == sizeof(float)) {
    kernels.pack[kHalf] = pack<Acc, Half>;
    kernels.unpack[kHalf] = unpack<Acc, Half>;
    kernels.pack[kBFloat16] = pack<Acc, BFloat16>;
    kernels.unpack[kBFloat16] = unpack<Acc, BFloat16>;
  }
  set_activation<Activation::kRelu>(kernels);
  set_activation<Activation::kAbs>(kernels);
  set_activation<Activation::kSquare>(kernels);
  set_activation<Activation::kSoftplus>(kernels);
  set_activation<Activation::kSigmoid>(kernels);
  kernels.gather_activated = gather<Acc, AlreadyActivated>;
  kernels.spread = spread<Acc>;
  kernels.summarize = summarize<Acc>;
  kernels.project = project<Acc>;
  return kernels;
}

extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = make_kernels<float>();
const Kernels<double> kernels_double = make_kernels<double>();

}  // namespace discfused::cpu::DISCFUSED_ISA
