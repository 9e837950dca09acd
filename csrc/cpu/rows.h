// Which rows belong to which class: what the operator `cpu_rows` returns.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"
#include "operators.h"

namespace discfused::cpu {

// Hard labels: index = order [N] (rows that do not count come last), offsets [S + 1], slot_class
// [S] (-1 for a slot without a class); weight = share [N], sizes [S].
// Soft labels: index is empty; weight = m [N, C].
std::vector<at::Tensor> rows(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype);

inline bool is_soft(at::TensorList rows) { return rows[1].dim() == 2; }

// The samples of every class, in the form that kernels read. Slots are the classes that are
// present, in the order of classes. With soft labels every m_ic != 0 is a sample of class c.
template <typename Acc>
struct Rows {
  int64_t slots;              // how many
  const int64_t* order;       // rows slot after slot, each slot's in their own order
  const int64_t* offsets;     // [slots + 1] where the rows of a slot begin
  const int64_t* slot_class;  // [slots]
  const Acc* share;           // m_ic / n_c of every row of `order`
  const Acc* sizes;           // [slots] n_c

  // Of what `rows` returned for N samples.
  Rows(at::TensorList rows, int64_t N, int64_t num_classes);
  Rows(const Rows&) = delete;  // it may point into its own memory

  int64_t count() const { return offsets[slots]; }
  bool soft() const { return !row_offsets.empty(); }
  ClassRows<Acc> of_slot(int64_t slot) const {
    const int64_t begin = offsets[slot];
    return {order + begin, share + begin, offsets[slot + 1] - begin};
  }
  // Soft labels: the slots of a row in the place of a slot's rows.
  ClassRows<Acc> slots_of_row(int64_t row) const {
    const int64_t begin = row_offsets[row];
    return {row_slots.data() + begin, row_share.data() + begin, row_offsets[row + 1] - begin};
  }

 private:
  void point_to(at::TensorList rows, int64_t samples, int64_t S);
  void group_soft(const at::Tensor& membership);
  std::vector<at::Tensor> grouped;  // soft labels
  std::vector<int64_t> row_slots, row_offsets;
  std::vector<Acc> row_share;
};

}  // namespace discfused::cpu
