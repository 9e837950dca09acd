#include "cpu/rows.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace discfused::cpu {

namespace {

// An IndexError for labels out of range. Nothing has been computed yet.
void check_labels(const int64_t* y, int64_t N, int64_t C, int64_t ignore_index) {
  int64_t bad = 0, first = 0;
  for (int64_t i = N - 1; i >= 0; --i) {
    if ((y[i] >= 0 && y[i] < C) || y[i] == ignore_index) continue;
    first = i;
    ++bad;
  }
  if (bad == 0) return;
  const std::string more =
      bad > 1 ? " (" + std::to_string(bad) + " labels are out of range)" : std::string();
  TORCH_CHECK_INDEX(
      false, "target[", first, "] is ", y[first], ", expected a class index in [0, ", C,
      ") or ignore_index ", ignore_index, more);
}

// Sorts rows by their labels, and equal labels by row: a radix sort, digit by digit, because a
// counting sort would need an array of C numbers, which may be many more than the rows.
void sort_by_label(const int64_t* y, int64_t C, int64_t* order, int64_t count) {
  constexpr int kBits = 10;
  std::vector<int64_t> sorted(count), next(std::min(C, int64_t{1} << kBits) + 1);
  for (int shift = 0; shift < 63 && (C - 1) >> shift > 0; shift += kBits) {
    const auto digit = [=](int64_t i) { return y[i] >> shift & ((1 << kBits) - 1); };
    std::fill(next.begin(), next.end(), 0);
    for (int64_t k = 0; k < count; ++k) ++next[digit(order[k]) + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t k = 0; k < count; ++k) sorted[next[digit(order[k])]++] = order[k];
    std::copy(sorted.begin(), sorted.end(), order);
  }
}

template <typename Acc>
std::vector<at::Tensor> hard(
    const at::Tensor& target, const at::Tensor& weights, int64_t C, int64_t ignore_index,
    at::ScalarType dtype) {
  const int64_t N = target.size(0), S = std::min(N, C);
  const int64_t* y = target.const_data_ptr<int64_t>();
  const Acc* s = weights.defined() ? weights.const_data_ptr<Acc>() : nullptr;
  check_labels(y, N, C, ignore_index);
  at::Tensor index = at::empty({N + 2 * S + 1}, target.options());
  at::Tensor weight = at::empty({N + S}, target.options().dtype(dtype));
  int64_t* order = index.mutable_data_ptr<int64_t>();
  int64_t* offsets = order + N;
  int64_t* slot_class = offsets + S + 1;
  Acc* share = weight.mutable_data_ptr<Acc>();
  Acc* sizes = share + N;

  int64_t last = 0, ignored = N;
  for (int64_t i = 0; i < N; ++i) {
    const bool counts = y[i] != ignore_index && !(s && s[i] == 0);
    order[counts ? last++ : --ignored] = i;
  }
  sort_by_label(y, C, order, last);
  std::fill(share + last, share + N, Acc(0));
  int64_t slot = 0;
  for (int64_t begin = 0; begin < last; ++slot) {
    int64_t end = begin;
    double size = 0;
    for (; end < last && y[order[end]] == y[order[begin]]; ++end) size += s ? s[order[end]] : 1;
    for (int64_t k = begin; k < end; ++k) {
      share[k] = static_cast<Acc>((s ? s[order[k]] : 1) / size);
    }
    offsets[slot] = begin;
    slot_class[slot] = y[order[begin]];
    sizes[slot] = static_cast<Acc>(size);
    begin = end;
  }
  std::fill(offsets + slot, offsets + S + 1, last);
  std::fill(slot_class + slot, slot_class + S, -1);
  std::fill(sizes + slot, sizes + S, Acc(0));
  return {index, weight};
}

template <typename Acc>
std::vector<at::Tensor> soft(
    const at::Tensor& target, const at::Tensor& weights, at::ScalarType dtype) {
  at::Tensor m = at::empty(target.sizes(), target.options().dtype(dtype));
  const int64_t N = m.size(0), C = m.size(1);
  const at::Tensor labels = target.to(dtype).contiguous();
  const Acc* t = labels.const_data_ptr<Acc>();
  const Acc* s = weights.defined() ? weights.const_data_ptr<Acc>() : nullptr;
  Acc* out = m.mutable_data_ptr<Acc>();
  for (int64_t i = 0; i < N; ++i) {
    const Acc factor = s ? s[i] : Acc(1);
    for (int64_t c = 0; c < C; ++c) {
      out[i * C + c] = factor == 0 ? Acc(0) : t[i * C + c] * factor;
    }
  }
  return {at::empty({0}, target.options().dtype(at::kLong)), m};
}

}  // namespace

std::vector<at::Tensor> rows(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype) {
  const bool is_soft = target.is_floating_point();
  TORCH_CHECK_VALUE(
      target.dim() == (is_soft ? 2 : 1) && (!is_soft || target.size(1) == num_classes),
      "target has shape ", target.sizes(), ", expected [N] or [N, num_classes]");
  TORCH_CHECK_VALUE(num_classes > 0, "num_classes is ", num_classes, ", expected at least 1");
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble, "dtype is ", dtype,
      ", expected float32 or float64");
  at::Tensor weights;
  if (sample_weight) {
    check_shape(*sample_weight, {target.size(0)}, "sample_weight");
    weights = sample_weight->to(dtype).contiguous();
  }
  const bool in_double = dtype == at::kDouble;
  if (is_soft) return (in_double ? soft<double> : soft<float>)(target, weights, dtype);
  return (in_double ? hard<double> : hard<float>)(target.contiguous(), weights, num_classes,
                                                  ignore_index, dtype);
}

template <typename Acc>
Rows<Acc>::Rows(at::TensorList rows, int64_t N, int64_t num_classes) {
  TORCH_CHECK_VALUE(rows.size() == 2, "rows holds ", rows.size(), " tensors, expected 2");
  if (is_soft(rows)) {
    check_shape(rows[1], {N, num_classes}, "rows[1]");
    sort_soft(rows[1].contiguous());
    return;
  }
  const int64_t S = std::min(N, num_classes);
  check_shape(rows[0], {N + 2 * S + 1}, "rows[0]");
  check_shape(rows[1], {N + S}, "rows[1]");
  order = rows[0].const_data_ptr<int64_t>();
  offsets = order + N;
  slot_class = offsets + S + 1;
  share = rows[1].const_data_ptr<Acc>();
  sizes = share + N;
  slots = std::find(slot_class, slot_class + S, -1) - slot_class;
}

template <typename Acc>
void Rows<Acc>::sort_soft(const at::Tensor& membership) {
  const int64_t N = membership.size(0), C = membership.size(1);
  const Acc* m = membership.const_data_ptr<Acc>();
  std::vector<double> size(C);
  std::vector<int64_t> next(C), slot_of(C);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t c = 0; c < C; ++c) {
      size[c] += m[i * C + c];
      next[c] += m[i * C + c] != 0;
    }
  }
  const int64_t total = std::accumulate(next.begin(), next.end(), int64_t{0});
  indices.resize(total + 2 * C + 1);
  weights.resize(total + C);
  int64_t* const first_rows = indices.data() + total;
  int64_t* const classes = first_rows + C + 1;
  slots = 0;
  for (int64_t c = 0, begin = 0; c < C; ++c) {
    if (next[c] == 0) continue;
    slot_of[c] = slots;
    classes[slots] = c;
    weights[total + slots] = static_cast<Acc>(size[c]);
    first_rows[slots] = begin;
    begin += std::exchange(next[c], begin);
    first_rows[++slots] = begin;
  }
  row_offsets.push_back(0);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t c = 0; c < C; ++c) {
      if (m[i * C + c] == 0) continue;
      const Acc part = static_cast<Acc>(m[i * C + c] / size[c]);
      const int64_t k = next[c]++;
      indices[k] = i;
      weights[k] = part;
      row_slots.push_back(slot_of[c]);
      row_share.push_back(part);
    }
    row_offsets.push_back(static_cast<int64_t>(row_slots.size()));
  }
  order = indices.data();
  offsets = first_rows;
  slot_class = classes;
  share = weights.data();
  sizes = share + total;
}

template struct Rows<float>;
template struct Rows<double>;

}  // namespace discfused::cpu
