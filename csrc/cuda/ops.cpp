// Tensors -> pointers: checks, allocations, and the calls of stages.h.

#include "cuda/ops.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "cuda/checks.h"

namespace discfused::cuda {

std::tuple<OptionalTensor, at::Tensor, at::Tensor, OptionalTensor> histogram(
    const at::Tensor& features, const at::Tensor& row_weight, const at::Tensor& total, int64_t S,
    const at::Tensor& rows, const at::Tensor& sums, int64_t activation, bool center,
    const OptionalTensor& mean, bool slope) {
  HistogramCall call{};
  call.features = features_call(features, activation);
  const auto [N, D] = std::make_pair(call.features.N, call.features.D);
  const at::ScalarType acc = accumulator(features);
  const Place place(features);
  check_shape(row_weight, {N}, "row_weight");
  check_shape(rows, {N + 2 * S}, "rows");
  check_shape(sums, {moment_parts(call.features.dtype, N, D), 2, D}, "sums");
  call.row_weight = checked(row_weight, features, acc, "row_weight");
  call.total = checked(total, features, acc, "total");
  call.order = static_cast<const int32_t*>(checked(rows, features, at::kInt, "rows"));
  call.span = call.order + N;
  call.sums = checked(sums, features, acc, "sums");
  call.S = S;
  call.center = center;

  const auto fresh = [&](at::IntArrayRef shape) {
    return N > 0 ? at::empty(shape, row_weight.options()) : at::zeros(shape, row_weight.options());
  };
  at::Tensor given, table = fresh({S, D}), magnitude = fresh({D}), parts;
  OptionalTensor mean_out, slope_out;
  call.table = table.mutable_data_ptr();
  call.magnitude = magnitude.mutable_data_ptr();
  if (slope) {
    slope_out = fresh({S, D});
    call.slope = slope_out->mutable_data_ptr();
  }
  if (center && mean) {
    check_shape(*mean, {D}, "mean");
    given = mean->contiguous();
    call.given_mean = checked(given, features, acc, "mean");
    mean_out = mean;
  } else if (center) {
    mean_out = fresh({D});
    call.mean = mean_out->mutable_data_ptr();
  }
  if (N > 0) {
    const int64_t count = table_parts(call.features.dtype, N, D, S);
    if (count > 1) {
      parts = at::empty({count, slope ? 2 : 1, S, D}, table.options());
      call.parts = parts.mutable_data_ptr();
    }
    cuda::histogram(call, place.stream);
  }
  return std::make_tuple(mean_out, table, magnitude, slope_out);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> terms(
    const at::Tensor& table, const at::Tensor& magnitude, const OptionalTensor& slope,
    const at::Tensor& prior, const OptionalTensor& absent, bool reverse, double eps,
    double gini_weight, double kl_weight) {
  const int64_t S = table.size(0), D = table.size(1);
  const at::ScalarType acc = table.scalar_type();
  check_shape(magnitude, {D}, "magnitude");
  check_shape(prior, {S}, "prior");
  const Place place(table);
  const at::Tensor H = table.contiguous(), pi = prior.contiguous(), scale = magnitude.contiguous();
  at::Tensor F;
  TermsCall call{};
  call.double_precision = acc == at::kDouble;
  call.table = checked(H, table, call.double_precision ? at::kDouble : at::kFloat, "table");
  if (slope) {
    check_shape(*slope, {S, D}, "slope");
    F = slope->contiguous();
    call.slope = checked(F, table, acc, "slope");
  }
  call.magnitude = checked(scale, table, acc, "magnitude");
  call.prior = checked(pi, table, acc, "prior");
  if (absent && !reverse) {
    check_shape(*absent, {}, "absent");
    call.absent = checked(*absent, table, acc, "absent");
  }
  at::Tensor feature_coef = at::empty({6, D}, table.options());
  at::Tensor slot_coef = at::empty({S}, table.options());
  at::Tensor sums = at::empty({terms_parts(D), S + 2}, table.options());
  at::Tensor penalty = at::empty({}, table.options()), gini = at::empty({}, table.options()),
             kl = at::empty({}, table.options());
  call.feature_coef = feature_coef.mutable_data_ptr();
  call.slot_coef = slot_coef.mutable_data_ptr();
  call.sums = sums.mutable_data_ptr();
  call.penalty = penalty.mutable_data_ptr();
  call.gini = gini.mutable_data_ptr();
  call.kl = kl.mutable_data_ptr();
  call.S = S;
  call.D = D;
  call.reverse = reverse;
  call.eps = eps;
  call.gini_weight = gini_weight;
  call.kl_weight = kl_weight;
  cuda::terms(call, place.stream);
  return std::make_tuple(penalty, gini, kl, feature_coef, slot_coef);
}

at::Tensor gradient(
    const at::Tensor& features, const OptionalTensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const OptionalTensor& mean, const at::Tensor& table,
    int64_t activation, const OptionalTensor& feature_coef, const OptionalTensor& slot_coef,
    const OptionalTensor& grad_gini, const OptionalTensor& grad_kl, double gini_weight,
    double kl_weight, bool told) {
  GradientCall call{};
  call.features = features_call(features, activation);
  const auto [N, D] = std::make_pair(call.features.N, call.features.D);
  const at::ScalarType acc = accumulator(features);
  const Place place(features);
  at::Tensor dx = at::empty({N, D}, features.options().memory_format(at::MemoryFormat::Contiguous));
  if (N == 0) return dx;
  check_shape(row_weight, {N}, "row_weight");
  call.row_weight = checked(row_weight, features, acc, "row_weight");
  call.total = checked(total, features, acc, "total");
  TORCH_CHECK_VALUE(
      table.dim() == 2 && table.size(1) == D, "table has shape ", table.sizes(), ", expected [S, ",
      D, "]");
  const at::Tensor H = table.contiguous();
  call.table = checked(H, features, acc, "table");
  if (slot) {
    check_shape(*slot, {N}, "slot");
    call.slot = static_cast<const int32_t*>(checked(*slot, features, at::kInt, "slot"));
  } else {
    check_shape(table, {N, D}, "table");
  }
  call.features.vector = call.features.vector && aligned(call.table);
  at::Tensor mu, sums;
  if (mean) {
    check_shape(*mean, {D}, "mean");
    mu = mean->contiguous();
    call.mean = checked(mu, features, acc, "mean");
    call.features.vector = call.features.vector && aligned(call.mean);
  }
  if (feature_coef) {
    TORCH_CHECK_VALUE(
        slot && slot_coef && grad_gini && grad_kl,
        "feature_coef is given: expected slot, slot_coef, grad_gini and grad_kl, too");
    check_shape(*feature_coef, {6, D}, "feature_coef");
    check_shape(*slot_coef, {table.size(0)}, "slot_coef");
    check_shape(*grad_gini, {}, "grad_gini");
    check_shape(*grad_kl, {}, "grad_kl");
    call.feature_coef = checked(*feature_coef, features, acc, "feature_coef");
    call.slot_coef = checked(*slot_coef, features, acc, "slot_coef");
    call.grad_gini = checked(*grad_gini, features, acc, "grad_gini");
    call.grad_kl = checked(*grad_kl, features, acc, "grad_kl");
    call.features.vector = call.features.vector && aligned(call.feature_coef);
  }
  call.gini_weight = gini_weight;
  call.kl_weight = kl_weight;
  if (mean && !(feature_coef && told)) {
    sums = at::empty({moment_parts(call.features.dtype, N, D), D}, row_weight.options());
    call.sums = sums.mutable_data_ptr();
  }
  call.dx = dx.mutable_data_ptr();
  cuda::gradient(call, place.stream);
  return dx;
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::NoTF32Guard no_tf32;
  return at::mm(a, b);
}

}  // namespace discfused::cuda
