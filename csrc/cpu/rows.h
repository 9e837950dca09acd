// Which rows belong to which class: what the operator `cpu_rows` returns.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"
#include "operators.h"

namespace discfused::cpu {

// Slots are the classes that are present, in the order of classes.
template <typename Acc>
struct Rows {
  int64_t slots;              // how many
  const int64_t* order;       // rows slot after slot, each slot's in their own order
  const int64_t* offsets;     // [slots + 1] where the rows of a slot begin
  const int64_t* slot_class;  // [slots]
  const Acc* share;           // m_ic / n_c of every row of `order`
  const Acc* sizes;           // [slots] n_c

  int64_t count() const { return offsets[slots]; }
  ClassRows<Acc> of_slot(int64_t slot) const {
    const int64_t begin = offsets[slot];
    return {order + begin, share + begin, offsets[slot + 1] - begin};
  }
};

// Hard labels: index = order [N] (rows that do not count come last), offsets [S + 1], slot_class
// [S] (-1 for a slot without a class); weight = share [N], sizes [S].
// Soft labels: index is empty; weight = m [N, C].
std::vector<at::Tensor> rows(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype);

inline bool is_soft(at::TensorList rows) { return rows[1].dim() == 2; }

template <typename Acc>
Rows<Acc> hard_rows(at::TensorList rows, int64_t N, int64_t num_classes);

// Every positive m_ic is a row of class c here. And the other way round: the slots of each row.
template <typename Acc>
class SoftRows {
 public:
  explicit SoftRows(const at::Tensor& membership);

  Rows<Acc> by_class() const;
  // order: slots; share: m_ic / n_c
  ClassRows<Acc> of_row(int64_t row) const {
    const int64_t begin = row_offsets_[row];
    return {row_slots_.data() + begin, row_share_.data() + begin, row_offsets_[row + 1] - begin};
  }

 private:
  std::vector<int64_t> order_, offsets_, slot_class_, row_slots_, row_offsets_;
  std::vector<Acc> share_, sizes_, row_share_;
};

}  // namespace discfused::cpu
