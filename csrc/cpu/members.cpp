// Which slot every row belongs to, and how much it counts. O(N + C) time and memory.

#include <limits>
#include <vector>

#include "cpu/checks.h"
#include "cpu/memory.h"
#include "cpu/ops.h"

namespace discfused::cpu {

namespace {

// The classes that are present in the batch, one bit each, and the rank of each among them.
class PresentClasses {
 public:
  explicit PresentClasses(int64_t num_classes)
      : words_(num_classes / 64 + 1), rank_(words_.size()) {}

  void insert(int64_t c) { words_[c / 64] |= uint64_t{1} << (c % 64); }

  // Call once, between the last insert() and the first rank().
  int64_t count() {
    int64_t total = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
      rank_[i] = total;
      total += __builtin_popcountll(words_[i]);
    }
    return total;
  }

  int64_t rank(int64_t c) const {
    const uint64_t smaller = (uint64_t{1} << (c % 64)) - 1;
    return rank_[c / 64] + __builtin_popcountll(words_[c / 64] & smaller);
  }

 private:
  std::vector<uint64_t> words_;
  std::vector<int64_t> rank_;
};

template <typename Acc>
const Acc* optional_weights(
    const std::optional<at::Tensor>& weights, at::Tensor& holder, int64_t size, const char* name) {
  if (!weights) return nullptr;
  check_shape(*weights, {size}, name);
  holder = weights->contiguous();
  return holder.const_data_ptr<Acc>();
}

template <typename Acc>
auto members_as(
    const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& sample_weight, int64_t C, int64_t S, int64_t ignore_index,
    at::ScalarType dtype) {
  const int64_t N = target.size(0);
  const at::Tensor labels = target.contiguous();
  const int64_t* y = labels.const_data_ptr<int64_t>();
  at::Tensor class_holder, sample_holder;
  const Acc* w = optional_weights<Acc>(weight, class_holder, C, "weight");
  const Acc* s = optional_weights<Acc>(sample_weight, sample_holder, N, "sample_weight");

  const auto options = target.options();
  at::Tensor slot = empty_kept({N}, options.dtype(at::kInt));
  at::Tensor row_weight = empty_kept({N}, options.dtype(dtype));
  at::Tensor total = empty_kept({}, options.dtype(dtype));
  at::Tensor slot_class = empty_kept({S}, options);
  at::Tensor share = empty_kept({S}, options.dtype(dtype));
  int32_t* slots = slot.mutable_data_ptr<int32_t>();
  Acc* n = row_weight.mutable_data_ptr<Acc>();
  int64_t* classes = slot_class.mutable_data_ptr<int64_t>();
  Acc* shares = share.mutable_data_ptr<Acc>();

  const bool every_class = S == C;
  PresentClasses present(every_class ? 0 : C);
  for (int64_t i = 0; i < N; ++i) {
    slots[i] = -1;
    n[i] = 0;
    if (y[i] == ignore_index) continue;
    // Nobody has looked before. The error that users see comes from _inputs.check_labels.
    TORCH_CHECK_INDEX(
        y[i] >= 0 && y[i] < C, "target[", i, "] is ", y[i], ", expected a class index in [0, ", C,
        ") or ignore_index ", ignore_index);
    n[i] = (w ? w[y[i]] : Acc(1)) * (s ? s[i] : Acc(1));
    if (n[i] == 0) continue;
    slots[i] = 0;
    if (!every_class) present.insert(y[i]);
  }
  const int64_t distinct = every_class ? C : present.count();
  TORCH_CHECK_VALUE(
      distinct <= S, "slots is ", S, ", expected at least ", distinct,
      ", the number of classes in target");

  // In double: these sums run over the whole batch, and every slot shares them.
  std::vector<double> mass(S);
  double sum = 0;
  for (int64_t c = 0; c < S; ++c) classes[c] = every_class ? c : -1;
  for (int64_t i = 0; i < N; ++i) {
    if (slots[i] < 0) continue;
    const int64_t k = every_class ? y[i] : present.rank(y[i]);
    slots[i] = static_cast<int32_t>(k);
    classes[k] = y[i];
    mass[k] += n[i];
    sum += n[i];
  }
  *total.mutable_data_ptr<Acc>() = static_cast<Acc>(sum);
  for (int64_t k = 0; k < S; ++k) shares[k] = static_cast<Acc>(mass[k] / (sum == 0 ? 1 : sum));
  return std::make_tuple(slot, row_weight, total, slot_class, share);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> members(
    const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& sample_weight, int64_t num_classes, int64_t slots,
    int64_t ignore_index, bool double_precision) {
  TORCH_CHECK_VALUE(target.dim() == 1, "target has shape ", target.sizes(), ", expected [N]");
  TORCH_CHECK_VALUE(
      slots >= 0 && slots <= std::numeric_limits<int32_t>::max(), "slots is ", slots,
      ", expected at most 2^31 - 1");
  const auto run = double_precision ? members_as<double> : members_as<float>;
  return run(
      target, weight, sample_weight, num_classes, slots, ignore_index,
      double_precision ? at::kDouble : at::kFloat);
}

}  // namespace discfused::cpu
