// The operators of discfused/backends/contract.py on CUDA tensors.

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/tensors.h"

namespace discfused::cuda {

namespace {

template <typename A>
std::vector<at::Tensor> rows_in_order(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t C, int64_t ignore_index,
    at::ScalarType dtype, const at::Tensor& bad) {
  const int64_t N = target.size(0), S = std::min(N, C), runs = divide_up(N, kRun);
  const at::TensorOptions integers = target.options(), floats = integers.dtype(dtype);
  if (N == 0) return {at::zeros({index_numbers(N, S)}, integers), at::zeros({S + 1}, floats)};
  const at::Tensor index = at::empty({index_numbers(N, S)}, integers);
  const at::Tensor weight = at::empty({S + 1 + N}, floats);
  RowsParams<A> p{};
  p.target = target.const_data_ptr<int64_t>();
  p.sample_weight = pointer<A>(sample_weight);
  p.C = C;
  p.ignore_index = ignore_index;
  p.out = hard_rows<A>({index, weight}, N, S);
  p.bad = bad.mutable_data_ptr<int32_t>();
  at::Tensor labels, masses;  // scratch, which one run needs none of
  if (runs > 1) {
    labels = at::empty({4 * N + runs}, integers);
    masses = at::empty({2 * N + runs}, floats);
    auto* const label = labels.mutable_data_ptr<int64_t>();
    A* const mass = masses.mutable_data_ptr<A>();
    p.runs = {0, label, label + N, mass};
    p.merged = {0, label + 2 * N, label + 3 * N, mass + N};
    p.whole = mass + 2 * N;
    p.wrong = label + 4 * N;
  }
  launch_rows<A>(p, current_stream(target));
  return {index, weight};
}

// What classes without a slot add to kl where the prior is not that of the batch: their q is 0.
at::Tensor of_absent_classes(const at::Tensor& prior, const at::Tensor& slot_class) {
  const int64_t C = prior.size(0);
  at::Tensor absent = at::constant_pad_nd(prior, {0, 1});  // and one for all empty slots
  absent.index_fill_(0, at::where(slot_class.lt(0), C, slot_class), 0);
  return at::xlogy(absent, absent.div(kProbabilityFloor)).sum();
}

// H of every slot, or of every class.
template <typename T>
void fill_table(
    const at::Tensor& features, at::TensorList row_tensors, const at::Tensor& table, int activation,
    bool by_class) {
  using A = Accumulator<T>;
  const int64_t N = features.size(0), D = features.size(1), C = table.size(0);
  const Stream stream = current_stream(features);
  const Matrix<T> x = matrix<T>(features);
  A* const out = table.mutable_data_ptr<A>();
  if (is_soft(row_tensors)) {
    const SoftRows<A> rows(row_tensors, N, C);
    launch_soft_table<T>({x, rows.m, rows.counts, rows.size, N, C, D, activation, out}, stream);
    return;
  }
  const auto rows = hard_rows<A>(row_tensors, N, std::min(N, C));
  const Pieces pieces(N, rows.S, D);
  const at::Tensor parts = at::empty({pieces.further, D}, table.options());
  A* const further = parts.mutable_data_ptr<A>();
  launch_table<T>({x, rows, D, pieces.R, pieces.count, activation, by_class, out, further}, stream);
  launch_fold<A>({rows, D, pieces.R, pieces.further, by_class, out, further}, stream);
}

template <typename T>
at::Tensor gradient_of(
    const at::Tensor& features, at::TensorList row_tensors,
    const TableGradient<Accumulator<T>>& table, int64_t C, int activation, bool by_class) {
  using A = Accumulator<T>;
  const int64_t N = features.size(0), D = features.size(1);
  at::Tensor dx = at::empty_like(features, at::MemoryFormat::Contiguous);
  if (N == 0) return dx;
  const Stream stream = current_stream(features);
  const Matrix<T> x = matrix<T>(features);
  T* const out = dx.mutable_data_ptr<T>();
  if (is_soft(row_tensors)) {
    const SoftRows<A> rows(row_tensors, N, C);
    launch_soft_gradient<T>(
        {x, rows.m, rows.counts, rows.size, table, N, C, D, activation, out}, stream);
    return dx;
  }
  const auto rows = hard_rows<A>(row_tensors, N, std::min(N, C));
  const Pieces pieces(N, rows.S, D);
  launch_gradient<T>(
      {x, rows, table, D, pieces.R, pieces.count, activation, by_class, out}, stream);
  return dx;
}

void check_features(const at::Tensor& features) {
  TORCH_CHECK_VALUE(
      features.dim() == 2, "features have shape ", features.sizes(), ", expected [N, D]");
}

}  // namespace

// `rows` of hard labels. `bad` [1], int32, in memory that the device can write, gets the number of
// labels out of range, if there are any; their rows do not count.
std::vector<at::Tensor> rows_flagged(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype, at::Tensor bad) {
  const c10::DeviceGuard guard(target.device());
  TORCH_CHECK_VALUE(target.dim() == 1, "target has shape ", target.sizes(), ", expected [N]");
  TORCH_CHECK_VALUE(num_classes > 0, "num_classes is ", num_classes, ", expected at least 1");
  OptionalTensor weight;
  if (sample_weight) {
    check_shape(*sample_weight, {target.size(0)}, "sample_weight");
    weight = sample_weight->to(dtype).contiguous();
  }
  const auto run = dtype == at::kDouble ? rows_in_order<double> : rows_in_order<float>;
  return run(target.contiguous(), weight, num_classes, ignore_index, dtype, bad);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> terms(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes,
    const OptionalTensor& prior, int64_t activation, int64_t impurity, double gini_weight,
    double kl_weight) {
  const c10::DeviceGuard guard(features.device());
  check_features(features);
  const int64_t N = features.size(0), D = features.size(1), S = slots(rows, N, num_classes);
  const at::TensorOptions options = features.options().dtype(accumulated(features));
  const at::Tensor table = at::empty({S, D}, options), kept = at::empty({4 * D + S}, options);
  at::Tensor scalars[3];
  for (at::Tensor& scalar : scalars) scalar = N ? at::empty({}, options) : at::zeros({}, options);
  if (N == 0) return {scalars[0], scalars[1], scalars[2], {table, kept}};
  OptionalTensor pi, absent;
  if (prior) {
    check_shape(*prior, {num_classes}, "prior");
    pi = prior->contiguous();
  }
  const int64_t* slot_class = nullptr;
  if (S < num_classes) {
    const at::Tensor classes = rows[0].narrow(0, 2 * N + S + 2, S);
    slot_class = classes.const_data_ptr<int64_t>();
    if (pi) absent = of_absent_classes(*pi, classes);
  }
  DISCFUSED_BY_FEATURES(features, [&] {
    using A = Accumulator<scalar_t>;
    fill_table<scalar_t>(
        features, rows, table, checked(activation, kActivations, "activation"), false);
    const A* const size = rows[1].const_data_ptr<A>();
    TermsParams<A> p{};
    p.table = table.const_data_ptr<A>();
    p.size = size;
    p.total = size + S;
    p.slot_class = slot_class;
    p.prior = pointer<A>(pi);
    p.absent = pointer<A>(absent);
    p.S = S;
    p.D = D;
    p.impurity = checked(impurity, kImpurities, "impurity");
    p.gini_weight = gini_weight;
    p.kl_weight = kl_weight;
    p.kept = coefficients<A>(kept, S, D);
    const at::Tensor scratch = at::empty({p.scratch()}, options);
    p.totals = scratch.mutable_data_ptr<A>();
    p.squares = p.totals + p.ranges() * D;
    p.projections = p.squares + p.ranges() * D;
    p.impurity_parts = p.projections + p.slot_blocks() * D;
    p.live_parts = p.impurity_parts + p.column_blocks();
    p.kl_parts = p.live_parts + p.column_blocks();
    p.penalty = scalars[0].mutable_data_ptr<A>();
    p.gini = scalars[1].mutable_data_ptr<A>();
    p.kl = scalars[2].mutable_data_ptr<A>();
    launch_terms<A>(p, current_stream(features));
  });
  return {scalars[0], scalars[1], scalars[2], {table, kept}};
}

at::Tensor gradient(
    const at::Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight) {
  const c10::DeviceGuard guard(features.device());
  check_features(features);
  TORCH_CHECK_VALUE(kept.size() == 2, "kept holds ", kept.size(), " tensors, expected 2");
  const int64_t S = kept[0].size(0), D = features.size(1);
  check_shape(kept[0], {S, D}, "kept[0]");
  at::Tensor dx;
  DISCFUSED_BY_FEATURES(features, [&] {
    using A = Accumulator<scalar_t>;
    const TableGradient<A> table{
        matrix<A>(kept[0]),
        coefficients<A>(kept[1], S, D),
        pointer<A>(grad_penalty),
        pointer<A>(grad_gini),
        pointer<A>(grad_kl),
        gini_weight,
        kl_weight};
    dx = gradient_of<scalar_t>(
        features, rows, table, S, checked(activation, kActivations, "activation"), false);
  });
  return dx;
}

at::Tensor histogram(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes, int64_t activation) {
  const c10::DeviceGuard guard(features.device());
  check_features(features);
  const at::TensorOptions options = features.options().dtype(accumulated(features));
  at::Tensor table = at::zeros({num_classes, features.size(1)}, options);
  if (features.size(0) == 0) return table;
  DISCFUSED_BY_FEATURES(features, [&] {
    fill_table<scalar_t>(
        features, rows, table, checked(activation, kActivations, "activation"), true);
  });
  return table;
}

at::Tensor histogram_gradient(
    const at::Tensor& grad, const at::Tensor& features, at::TensorList rows, int64_t activation) {
  const c10::DeviceGuard guard(features.device());
  check_features(features);
  const int64_t C = grad.size(0);
  check_shape(grad, {C, features.size(1)}, "grad");
  at::Tensor dx;
  DISCFUSED_BY_FEATURES(features, [&] {
    TableGradient<Accumulator<scalar_t>> table{};
    table.table = matrix<Accumulator<scalar_t>>(grad);
    dx = gradient_of<scalar_t>(
        features, rows, table, C, checked(activation, kActivations, "activation"), true);
  });
  return dx;
}

// The tests run the kernels on the host, for CPU tensors.
#ifndef DISCFUSED_CUDA_KEY
#define DISCFUSED_CUDA_KEY CUDA
#endif

TORCH_LIBRARY_IMPL(discfused, DISCFUSED_CUDA_KEY, library) {
  library.impl("cuda_rows_flagged", TORCH_FN(rows_flagged));
  library.impl("cuda_terms", TORCH_FN(terms));
  library.impl("cuda_gradient", TORCH_FN(gradient));
  library.impl("cuda_histogram", TORCH_FN(histogram));
  library.impl("cuda_histogram_gradient", TORCH_FN(histogram_gradient));
}

}  // namespace discfused::cuda
