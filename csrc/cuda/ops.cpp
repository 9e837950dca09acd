// Tensors -> pointers: checks, allocations, and the calls of stages.h.

#include "cuda/ops.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <limits>

#include "cuda/stages.h"

namespace discfused::cuda {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == shape, name, " has shape ", tensor.sizes(), ", expected ", shape);
}

// What a direct caller of the bindings could break; the Python side has checked user input before.
const void* checked(
    const at::Tensor& tensor, const at::Tensor& like, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == dtype, name, " has dtype ", tensor.scalar_type(), ", expected ",
      dtype);
  TORCH_CHECK_VALUE(
      tensor.device() == like.device(), name, " is on ", tensor.device(), ", expected ",
      like.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " is not contiguous");
  return tensor.const_data_ptr();
}

Dtype dtype_of(const at::Tensor& features) {
  switch (features.scalar_type()) {
    case at::kHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kFloat:
      return Dtype::kFloat;
    case at::kDouble:
      return Dtype::kDouble;
    default:
      TORCH_CHECK_TYPE(
          false, "features have dtype ", features.scalar_type(),
          ", expected float16, bfloat16, float32 or float64");
  }
}

at::ScalarType accumulator(const at::Tensor& features) {
  return features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

FeaturesCall features_call(const at::Tensor& x, int64_t activation) {
  TORCH_CHECK_VALUE(x.dim() == 2, "features have shape ", x.sizes(), ", expected [N, D]");
  TORCH_CHECK_VALUE(
      activation >= 0 && activation < 5, "activation is ", activation, ", expected 0 to 4");
  TORCH_CHECK_VALUE(
      x.size(0) <= std::numeric_limits<int32_t>::max(), "features have ", x.size(0),
      " rows, expected at most 2^31 - 1");
  const int64_t size = x.element_size(), D = x.size(1);
  const bool vector = x.stride(1) == 1 && x.stride(0) * size % 16 == 0 && D * size % 16 == 0 &&
                      aligned(x.const_data_ptr());
  return {dtype_of(x), vector,      x.const_data_ptr(), x.size(0),
          D,           x.stride(0), x.stride(1),        static_cast<int>(activation)};
}

struct Place {
  explicit Place(const at::Tensor& tensor)
      : guard(tensor.device()), stream(current_stream(tensor.device().index())) {}
  c10::DeviceGuard guard;
  Stream stream;
};

at::Tensor new_sums(const FeaturesCall& call, const at::Tensor& row_weight) {
  return at::empty({moment_parts(call.dtype, call.N, call.D), 2, call.D}, row_weight.options());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
members(
    const at::Tensor& target, const OptionalTensor& weight, const OptionalTensor& sample_weight,
    int64_t C, int64_t S, int64_t ignore_index, const at::Tensor& features, int64_t activation,
    const at::Tensor& bad) {
  const FeaturesCall x = features_call(features, activation);
  const int64_t N = x.N;
  check_shape(target, {N}, "target");
  constexpr int64_t most = std::numeric_limits<int32_t>::max() - 1;
  TORCH_CHECK_VALUE(C > 0 && C <= most, "num_classes is ", C, ", expected 1 to 2^31 - 2");
  TORCH_CHECK_VALUE(
      S == C || S == N, "slots is ", S, ", expected ", C, " (the number of classes) or ", N,
      " (of rows)");
  const at::ScalarType acc = accumulator(features);
  const bool double_precision = acc == at::kDouble;
  const Place place(features);

  const at::Tensor labels = target.contiguous();
  at::Tensor class_weight, row_factor;
  LabelsCall in{};
  in.target = static_cast<const int64_t*>(checked(labels, features, at::kLong, "target"));
  if (weight) {
    check_shape(*weight, {C}, "weight");
    class_weight = weight->contiguous();
    in.weight = checked(class_weight, features, acc, "weight");
  }
  if (sample_weight) {
    check_shape(*sample_weight, {N}, "sample_weight");
    row_factor = sample_weight->contiguous();
    in.sample_weight = checked(row_factor, features, acc, "sample_weight");
  }
  in.N = N;
  in.C = C;
  in.S = S;
  in.ignore_index = ignore_index;

  const bool counts = counts_rows(N, S, C);
  const auto integers = features.options().dtype(at::kInt), floats = features.options().dtype(acc);
  const auto fresh = [&](at::IntArrayRef shape, const at::TensorOptions& options) {
    return counts && N > 0 ? at::empty(shape, options) : at::zeros(shape, options);
  };
  at::Tensor slot = fresh({N}, integers), row_weight = fresh({N}, floats);
  at::Tensor total = fresh({}, floats), share = fresh({S}, floats);
  at::Tensor slot_class = fresh({S}, features.options().dtype(at::kLong));
  at::Tensor rows = fresh({N + 2 * S}, integers);
  at::Tensor sums = new_sums(x, row_weight);
  int32_t* order = rows.mutable_data_ptr<int32_t>();
  const auto result = [&] {
    return std::make_tuple(slot, row_weight, total, slot_class, share, rows, sums);
  };
  if (N == 0) return result();

  SlotsCall out{
      slot.mutable_data_ptr<int32_t>(),
      row_weight.mutable_data_ptr(),
      order,
      order + N,
      share.mutable_data_ptr(),
      slot_class.mutable_data_ptr<int64_t>(),
      total.mutable_data_ptr(),
      bad.mutable_data_ptr<int32_t>()};
  MomentsCall moments{x, nullptr, sums.mutable_data_ptr()};
  if (counts) {
    begin(&in, &out, &moments, double_precision, place.stream);
    return result();
  }
  at::Tensor key = at::empty({N}, integers);
  at::Tensor wrong = at::zeros({1}, features.options().dtype(at::kLong));
  SortedCall sorted{
      key.mutable_data_ptr<int32_t>(), nullptr, nullptr, wrong.mutable_data_ptr<int64_t>()};
  sort_begin(in, out, sorted, double_precision, place.stream);
  const auto [sorted_key, sorted_row] = at::sort(key, /*stable=*/true, 0, /*descending=*/false);
  total = row_weight.sum();
  out.total = total.mutable_data_ptr();
  sorted.sorted_key = sorted_key.const_data_ptr<int32_t>();
  sorted.sorted_row = sorted_row.const_data_ptr<int64_t>();
  sort_end(in, out, sorted, double_precision, place.stream);
  moments.row_weight = row_weight.const_data_ptr();
  begin(nullptr, nullptr, &moments, double_precision, place.stream);
  return result();
}

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
