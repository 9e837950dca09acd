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

// What `rows` returns for N samples of the labels y and the weights s (or null).
template <typename Acc>
std::vector<at::Tensor> group(
    const int64_t* y, const Acc* s, int64_t N, int64_t C, int64_t ignore_index) {
  const int64_t S = std::min(N, C);
  at::Tensor index = at::empty({N + 2 * S + 1}, at::kLong);
  at::Tensor weight = at::empty({N + S}, c10::CppTypeToScalarType<Acc>::value);
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
  if (is_soft) {
    at::Tensor m = at::empty(target.sizes(), target.options().dtype(dtype)).copy_(target);
    if (sample_weight) {
      const at::Tensor s = weights.unsqueeze(1);
      m.mul_(s).masked_fill_(s.eq(0), 0);  // whatever stands in rows that do not count
    }
    return {at::empty({0}, target.options().dtype(at::kLong)), m};
  }
  const at::Tensor labels = target.contiguous();
  const int64_t* y = labels.const_data_ptr<int64_t>();
  check_labels(y, target.size(0), num_classes, ignore_index);
  const auto run = [&](auto zero) {
    const auto* s = sample_weight ? weights.const_data_ptr<decltype(zero)>() : nullptr;
    return group(y, s, target.size(0), num_classes, ignore_index);
  };
  return dtype == at::kDouble ? run(double{}) : run(float{});
}

template <typename Acc>
Rows<Acc>::Rows(at::TensorList rows, int64_t N, int64_t num_classes) {
  TORCH_CHECK_VALUE(rows.size() == 2, "rows holds ", rows.size(), " tensors, expected 2");
  if (is_soft(rows)) {
    check_shape(rows[1], {N, num_classes}, "rows[1]");
    group_soft(rows[1].contiguous());
    return;
  }
  const int64_t S = std::min(N, num_classes);
  check_shape(rows[0], {N + 2 * S + 1}, "rows[0]");
  check_shape(rows[1], {N + S}, "rows[1]");
  point_to(rows, N, S);
}

template <typename Acc>
void Rows<Acc>::point_to(at::TensorList rows, int64_t samples, int64_t S) {
  order = rows[0].const_data_ptr<int64_t>();
  offsets = order + samples;
  slot_class = offsets + S + 1;
  share = rows[1].const_data_ptr<Acc>();
  sizes = share + samples;
  slots = std::find(slot_class, slot_class + S, -1) - slot_class;
}

template <typename Acc>
void Rows<Acc>::group_soft(const at::Tensor& membership) {
  const int64_t N = membership.size(0), C = membership.size(1);
  const Acc* m = membership.const_data_ptr<Acc>();
  std::vector<int64_t> row, label;  // of every m_ic != 0
  row_offsets.push_back(0);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t c = 0; c < C; ++c) {
      if (m[i * C + c] == 0) continue;
      row.push_back(i);
      label.push_back(c);
      row_share.push_back(m[i * C + c]);
    }
    row_offsets.push_back(static_cast<int64_t>(row.size()));
  }
  const int64_t samples = row_offsets.back();
  grouped = group(label.data(), row_share.data(), samples, C, -1);
  point_to(grouped, samples, std::min(samples, C));
  int64_t* index = grouped[0].mutable_data_ptr<int64_t>();
  row_slots.resize(samples);
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (int64_t k = offsets[slot]; k < offsets[slot + 1]; ++k) {
      const int64_t sample = std::exchange(index[k], row[index[k]]);
      row_slots[sample] = slot;
      row_share[sample] = share[k];
    }
  }
}

template struct Rows<float>;
template struct Rows<double>;

}  // namespace discfused::cpu
