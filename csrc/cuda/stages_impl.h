// The host's side of the stages: which kernels, over how many blocks.
// Run{...}.launch<Kernel>(blocks, arguments) launches on a GPU; in the tests it runs the kernel on
// the host.
#pragma once

#include "cuda/begin_kernel.h"
#include "cuda/gradient_kernels.h"
#include "cuda/sorted_kernels.h"
#include "cuda/stages.h"
#include "cuda/table_kernel.h"
#include "cuda/terms_kernels.h"

namespace discfused::cuda {

// f(T{}) for the dtype of the features, f(A{}) for that of sums
template <class F>
void with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kHalf:
      return f(c10::Half());
    case Dtype::kBFloat16:
      return f(c10::BFloat16());
    case Dtype::kFloat:
      return f(float());
    case Dtype::kDouble:
      return f(double());
  }
}

template <class F>
void with_accumulator(bool double_precision, const F& f) {
  if (double_precision) {
    f(double());
  } else {
    f(float());
  }
}

template <class F>
void with_features(const FeaturesCall& features, const F& f) {
  with_dtype(features.dtype, [&](auto zero) {
    if (features.vector) {
      f(zero, std::true_type());
    } else {
      f(zero, std::false_type());
    }
  });
}

template <typename T>
Matrix<T> matrix(const FeaturesCall& call) {
  return {static_cast<const T*>(call.x), call.row_stride, call.column_stride};
}

template <typename T>
int64_t column_blocks(int64_t D) {
  return divide_up(D, kColumns<T>);
}

template <typename A>
SlotArguments<A> slot_arguments(const LabelsCall* labels, const SlotsCall* slots) {
  SlotArguments<A> a{};
  if (labels) {
    a.labels = {
        labels->target,
        static_cast<const A*>(labels->weight),
        static_cast<const A*>(labels->sample_weight),
        labels->N,
        labels->C,
        labels->ignore_index};
    a.S = labels->S;
  }
  if (slots) {
    a.out = {
        slots->slot,
        static_cast<A*>(slots->row_weight),
        slots->order,
        slots->span,
        static_cast<A*>(slots->share),
        slots->slot_class,
        static_cast<A*>(slots->total),
        slots->bad};
  }
  return a;
}

template <class Run>
void run_begin(
    const LabelsCall* labels, const SlotsCall* slots, const MomentsCall* moments,
    bool double_precision, const Run& run) {
  const auto launch = [&](auto zero, auto vector, bool with_moments) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    BeginArguments<T> a{};
    a.slots = slot_arguments<A>(labels, slots);
    if (slots) {
      a.slot_blocks = labels->S == labels->C ? ClassSlots<A>::blocks(labels->S)
                                             : PresentSlots<A>::blocks(labels->N);
    }
    int64_t blocks = a.slot_blocks;
    if (with_moments) {
      const FeaturesCall& x = moments->features;
      const int64_t parts = moment_parts(x.dtype, x.N, x.D);
      a.moments = {
          matrix<T>(x),
          a.slots.labels,
          static_cast<const A*>(moments->row_weight),
          static_cast<A*>(moments->sums),
          x.N,
          x.D,
          parts,
          static_cast<Activation>(x.activation)};
      blocks += column_blocks<T>(x.D) * parts;
    }
    run.template launch<Begin<T, vector.value>>(blocks, a);
  };
  if (moments) {
    with_features(moments->features, [&](auto zero, auto vector) { launch(zero, vector, true); });
  } else {
    with_accumulator(double_precision, [&](auto zero) { launch(zero, std::true_type(), false); });
  }
}

template <typename A>
SortArguments<A> sort_arguments(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted) {
  return {
      slot_arguments<A>(&labels, &slots), sorted.key, sorted.sorted_key, sorted.sorted_row,
      sorted.wrong};
}

template <class Run>
void run_sort_begin(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, const Run& run) {
  with_accumulator(double_precision, [&](auto zero) {
    using A = decltype(zero);
    const auto a = sort_arguments<A>(labels, slots, sorted);
    run.template launch<RowKeys<A>>(divide_up(labels.N, kRowThreads), a);
  });
}

template <class Run>
void run_sort_end(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, const Run& run) {
  with_accumulator(double_precision, [&](auto zero) {
    using A = decltype(zero);
    const auto a = sort_arguments<A>(labels, slots, sorted);
    run.template launch<SortedSpans<A>>(divide_up(labels.N, kRowThreads), a);
    run.template launch<SortedShares<A>>(labels.S, a);
  });
}

// Into how many groups of threads a slot's rows are dealt: at least 4 rows for each.
inline int split_of(int64_t N, int64_t S) {
  int split = 1;
  while (split < kGroups && N >= 8 * S * split) split *= 2;
  return split;
}

template <class Run>
void run_histogram(const HistogramCall& call, const Run& run) {
  with_features(call.features, [&](auto zero, auto vector) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const FeaturesCall& x = call.features;
    const int64_t parts = table_parts(x.dtype, x.N, x.D, call.S), size = call.S * x.D;
    const int64_t width = call.slope ? 2 * size : size;
    A* table = static_cast<A*>(parts > 1 ? call.parts : call.table);
    A* slope = static_cast<A*>(call.slope);
    if (slope && parts > 1) slope = table + size;
    const int split = split_of(x.N, call.S);
    const TableArguments<T> a{
        matrix<T>(x),
        static_cast<const A*>(call.row_weight),
        static_cast<const A*>(call.total),
        call.order,
        call.span,
        static_cast<const A*>(call.sums),
        static_cast<const A*>(call.given_mean),
        static_cast<A*>(call.mean),
        static_cast<A*>(call.magnitude),
        table,
        slope,
        call.S,
        x.D,
        moment_parts(x.dtype, x.N, x.D),
        parts,
        width,
        split,
        static_cast<Activation>(x.activation),
        call.center};
    const int64_t slot_blocks = divide_up(call.S, kGroups / split);
    run.template launch<Table<T, vector.value>>(column_blocks<T>(x.D) * slot_blocks * parts, a);
    if (parts == 1) return;
    const FoldArguments<A> fold{
        table, static_cast<A*>(call.table), static_cast<A*>(call.slope), parts, width, size};
    run.template launch<Fold<A>>(divide_up(width, kRowThreads), fold);
  });
}

template <class Run>
void run_terms(const TermsCall& call, const Run& run) {
  with_accumulator(call.double_precision, [&](auto zero) {
    using A = decltype(zero);
    TermsArguments<A> a{
        static_cast<const A*>(call.table),
        static_cast<const A*>(call.slope),
        static_cast<const A*>(call.magnitude),
        static_cast<const A*>(call.prior),
        static_cast<const A*>(call.absent),
        static_cast<A*>(call.feature_coef),
        static_cast<A*>(call.slot_coef),
        static_cast<A*>(call.penalty),
        static_cast<A*>(call.gini),
        static_cast<A*>(call.kl),
        static_cast<A*>(call.sums),
        call.S,
        call.D,
        kTermsWarps,
        call.reverse,
        static_cast<A>(call.eps),
        static_cast<A>(call.gini_weight),
        static_cast<A>(call.kl_weight)};
    const int64_t parts = terms_parts(call.D);
    // One block reads a table this small about as fast as another launch begins.
    if (parts <= kTermsWarps && call.S * call.D <= 16384) {
      while (kTermsWarps / a.slot_warps < parts) a.slot_warps /= 2;
      run.template launch<AllTerms<A>>(1, a);
      return;
    }
    run.template launch<FeatureTerms<A>>(parts, a);
    run.template launch<ClassTerms<A>>(parts, a);
  });
}

template <class Run>
void run_gradient(const GradientCall& call, const Run& run) {
  with_features(call.features, [&](auto zero, auto vector) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const FeaturesCall& x = call.features;
    const int64_t parts = moment_parts(x.dtype, x.N, x.D);
    // Each group prepares its columns before it walks: as many rows as leave 512 blocks.
    int64_t rows_each = 2;
    while (rows_each < 16 &&
           column_blocks<T>(x.D) * divide_up(x.N, kGroups * 2 * rows_each) >= 512) {
      rows_each *= 2;
    }
    const GradientArguments<T> a{
        matrix<T>(x),
        call.slot,
        static_cast<const A*>(call.row_weight),
        static_cast<const A*>(call.total),
        static_cast<const A*>(call.mean),
        static_cast<const A*>(call.table),
        static_cast<const A*>(call.feature_coef),
        static_cast<const A*>(call.slot_coef),
        static_cast<const A*>(call.grad_gini),
        static_cast<const A*>(call.grad_kl),
        static_cast<A>(call.gini_weight),
        static_cast<A>(call.kl_weight),
        static_cast<A*>(call.sums),
        static_cast<T*>(call.dx),
        x.N,
        x.D,
        parts,
        rows_each,
        static_cast<Activation>(x.activation)};
    if (call.sums) {
      run.template launch<GradientSum<T, vector.value>>(column_blocks<T>(x.D) * parts, a);
    }
    const int64_t row_blocks = divide_up(x.N, kGroups * rows_each);
    run.template launch<Gradient<T, vector.value>>(column_blocks<T>(x.D) * row_blocks, a);
  });
}

}  // namespace discfused::cuda
