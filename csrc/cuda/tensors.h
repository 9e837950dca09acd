// Tensors as the kernels' parameters.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "cuda/kernels.h"
#include "operators.h"

#define DISCFUSED_BY_FEATURES(features, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(           \
      at::kHalf, at::kBFloat16, (features).scalar_type(), "discfused", __VA_ARGS__)

namespace discfused::cuda {

Stream current_stream(const at::Tensor& tensor);

inline at::ScalarType accumulated(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline int checked(int64_t option, int64_t count, const char* name) {
  TORCH_CHECK_VALUE(
      option >= 0 && option < count, name, " is ", option, ", expected less than ", count);
  return static_cast<int>(option);
}

template <typename T>
Matrix<T> matrix(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1)};
}

template <typename A>
const A* pointer(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<A>() : nullptr;
}

// `rows` of hard labels: index = order [N], row_slot [N], offsets [S + 2], slot_class [S];
// weight = size [S], total [1], weight [N]. Of soft labels: m [N, C]; size [C], total [1],
// counts [N].

inline bool is_soft(at::TensorList rows) { return rows[0].is_floating_point(); }

inline int64_t slots(at::TensorList rows, int64_t N, int64_t C) {
  return is_soft(rows) ? C : std::min(N, C);
}

inline int64_t index_numbers(int64_t N, int64_t S) { return 2 * N + 2 * S + 2; }

template <typename A>
Rows<A> hard_rows(at::TensorList rows, int64_t N, int64_t S) {
  check_shape(rows[0], {index_numbers(N, S)}, "rows[0]");
  check_shape(rows[1], {S + 1 + N}, "rows[1]");
  auto* order = const_cast<int64_t*>(rows[0].const_data_ptr<int64_t>());
  A* size = const_cast<A*>(rows[1].const_data_ptr<A>());
  return {N,    S,        order,       order + N, order + 2 * N, order + 2 * N + S + 2,
          size, size + S, size + S + 1};
}

template <typename A>
struct SoftRows {
  const A *m, *size, *counts;

  SoftRows(at::TensorList rows, int64_t N, int64_t C)
      : m(rows[0].const_data_ptr<A>()), size(rows[1].const_data_ptr<A>()), counts(size + C + 1) {
    check_shape(rows[0], {N, C}, "rows[0]");
    check_shape(rows[1], {C + 1 + N}, "rows[1]");
  }
};

template <typename A>
Coefficients<A> coefficients(const at::Tensor& kept, int64_t S, int64_t D) {
  check_shape(kept, {4 * D + S}, "kept[1]");
  A* data = const_cast<A*>(kept.const_data_ptr<A>());
  return {data, data + D, data + 2 * D, data + 3 * D, data + 4 * D};
}

}  // namespace discfused::cuda
