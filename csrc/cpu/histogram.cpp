// features -> H [C, D]

#include <ATen/ops/zeros.h>

#include "cpu/tiles.h"

namespace discfused::cpu {

namespace {

template <typename Acc>
at::Tensor histogram_as(const Features& x, at::TensorList row_tensors, int64_t C, int activation) {
  at::Tensor table = at::zeros({C, x.D}, x.accumulated());
  Acc* out = table.mutable_data_ptr<Acc>();
  const auto class_mean = kernels<Acc>().class_mean[activation][x.type];
  const Rows<Acc> rows(row_tensors, x.N, C);
  for_each_tile(slot_ranges(rows), x.N, x.D, [&](const Tile& tile) {
    const auto columns = x.columns(tile.first_column, tile.columns);
    Acc H[kMostColumns], unused[2 * kMostColumns] = {};  // totals that nobody reads
    for (int64_t slot = tile.first_slot; slot < tile.last_slot; ++slot) {
      class_mean(rows.of_slot(slot), columns, H, unused, unused + kMostColumns);
      std::copy(H, H + tile.columns, out + rows.slot_class[slot] * x.D + tile.first_column);
    }
  });
  return table;
}

}  // namespace

at::Tensor histogram(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes, int64_t activation) {
  const Features x(features);
  const auto run = x.in_double() ? histogram_as<double> : histogram_as<float>;
  return run(x, rows, num_classes, checked_activation(activation));
}

}  // namespace discfused::cpu
