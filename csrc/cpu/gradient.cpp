// d loss / d features, from what `terms` kept or from a given gradient of the table

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <cstring>

#include "cpu/fresh_memory.h"
#include "cpu/kept.h"

namespace discfused::cpu {

namespace {

struct Output {
  at::Tensor tensor;
  bool stream;

  explicit Output(const Features& x) {
    constexpr size_t kLarge = size_t{16} << 20;  // would push everything else out of the cache
    tensor = at::empty({x.N, x.D}, x.tensor.options());
    prepare(tensor.const_data_ptr(), tensor.nbytes());
    const auto address = reinterpret_cast<intptr_t>(tensor.const_data_ptr());
    stream = tensor.nbytes() >= kLarge && address % kLine == 0 &&
             x.D * tensor.element_size() % kLine == 0;
  }

  Columns<void*> columns(int64_t first, int64_t count) const {
    auto* data = static_cast<char*>(tensor.mutable_data_ptr());
    return {data + first * tensor.element_size(), tensor.size(1), count};
  }
};

// G of a table that holds G itself: of one tile, from any of its columns on.
template <typename Acc>
struct GivenRows {
  Acc zeros[kMostColumns] = {}, ones[kMostColumns];

  GivenRows() { std::fill(ones, ones + kMostColumns, Acc(1)); }
  GradientRow<Acc> operator()(const Acc* row) const {
    return {ones, zeros, ones, row, Acc(1), Acc(0)};
  }
};

// Hard labels: a row of G serves all rows of its class. row(slot, first column) is one.
template <typename Acc, typename Row>
void write_hard(
    const Features& x, const Rows<Acc>& rows, int activation, const Output& dx, const Row& row) {
  const auto write_rows = kernels<Acc>().write_rows[activation][x.type];
  for_each_tile(slot_ranges(rows), x.N, x.D, [&](const Tile& tile) {
    const auto from = x.columns(tile.first_column, tile.columns);
    const auto to = dx.columns(tile.first_column, tile.columns);
    for (int64_t slot = tile.first_slot; slot < tile.last_slot; ++slot) {
      write_rows(rows.of_slot(slot), from, row(slot, tile.first_column), to, dx.stream);
    }
    if (dx.stream) fence_streams();
  });
  const size_t bytes = x.D * x.tensor.element_size();  // of a row; those left do not count
  for (int64_t k = rows.count(); k < x.N; ++k) {
    std::memset(static_cast<char*>(dx.columns(0, x.D).data) + rows.order[k] * bytes, 0, bytes);
  }
}

// Soft labels: each row has a combination of the rows of G.
template <typename Acc, typename Row>
void write_soft(
    const Features& x, const Rows<Acc>& rows, int activation, const Output& dx, const Row& row) {
  const GivenRows<Acc> given;
  const auto write_rows = kernels<Acc>().write_rows[activation][x.type];
  const int64_t slots = rows.slots, N = x.N;
  const Numbers<Acc> table(new Acc[slots * std::min(padded(x.D), kMostColumns)]);
  for (int64_t first = 0; first < x.D; first += kMostColumns) {
    const int64_t columns = std::min(x.D - first, kMostColumns), width = padded(columns);
    at::parallel_for(0, slots, grain(slots * width, slots), [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        kernels<Acc>().store_gradient_row(row(slot, first), width, table.get() + slot * width);
      }
    });
    at::parallel_for(0, N, grain(N * columns, N), [&](int64_t begin, int64_t end) {
      Acc G[kMostColumns];
      const Acc one = 1;
      for (int64_t i = begin; i < end; ++i) {
        std::fill(G, G + width, Acc(0));
        kernels<Acc>().add_weighted(
            rows.slots_of_row(i), {table.get(), width, width}, given.ones, G);
        write_rows(
            {&i, &one, 1}, x.columns(first, columns), given(G), dx.columns(first, columns),
            dx.stream);
      }
      if (dx.stream) fence_streams();
    });
  }
}

template <typename Acc, typename Row>
at::Tensor write(const Features& x, const Rows<Acc>& rows, int activation, const Row& row) {
  const Output dx(x);
  if (rows.soft()) {
    write_soft(x, rows, activation, dx, row);
  } else {
    write_hard(x, rows, activation, dx, row);
  }
  return dx.tensor;
}

template <typename Acc>
double upstream(const OptionalTensor& penalty, double weight, const OptionalTensor& term) {
  double sum = 0;
  for (const OptionalTensor* grad : {&penalty, &term}) {
    if (!*grad || !(*grad)->defined()) continue;
    check_shape(**grad, {}, "an upstream gradient");
    sum += *(*grad)->const_data_ptr<Acc>() * (grad == &penalty ? weight : 1);
  }
  return sum;
}

template <typename Acc>
at::Tensor gradient_as(
    const Features& x, at::TensorList row_tensors, at::TensorList kept_tensors, Acc g1, Acc g2,
    int activation) {
  TORCH_CHECK_VALUE(kept_tensors.size() == 1, "kept holds ", kept_tensors.size(), " tensors");
  const int64_t W = padded(x.D);
  // (S + 4) W + S + 1 numbers
  const int64_t S = (kept_tensors[0].numel() - 4 * W - 1) / (W + 1);
  check_shape(kept_tensors[0], {Kept<Acc>::numbers(S, x.D)}, "kept[0]");
  const at::Tensor memory = kept_tensors[0].contiguous();
  const Kept<Acc> kept(const_cast<Acc*>(memory.const_data_ptr<Acc>()), S, x.D);
  const Rows<Acc> rows(row_tensors, x.N, S);
  const Numbers<Acc> constant(new Acc[W]);
  for (int64_t j = 0; rows.slots > 0 && j < W; ++j) {
    constant[j] = g1 * kept.constant[j] - g2 * kept.projection[j];
  }
  const bool gini = *kept.factor != 0;
  const Acc* slope = gini ? kept.inverse : kept.slope;
  const Acc factor = gini ? -g1 * *kept.factor : -g1;
  const auto row = [&](int64_t slot, int64_t first) {
    return GradientRow<Acc>{kept.inverse + first,
                            constant.get() + first,
                            slope + first,
                            kept.H + slot * W + first,
                            factor,
                            g2 * kept.slot_coef[slot]};
  };
  return write(x, rows, activation, row);
}

template <typename Acc>
at::Tensor histogram_gradient_as(
    const Features& x, at::TensorList row_tensors, const at::Tensor& grad, int activation) {
  TORCH_CHECK_VALUE(
      grad.dim() == 2 && grad.size(1) == x.D, "grad has shape ", grad.sizes(), ", expected [C, ",
      x.D, "]");
  const int64_t width = padded(x.D);
  const at::Tensor table = at::constant_pad_nd(grad, {0, width - x.D}).contiguous();
  const Acc* data = table.const_data_ptr<Acc>();
  const GivenRows<Acc> given;
  const Rows<Acc> rows(row_tensors, x.N, grad.size(0));
  const auto row = [&](int64_t slot, int64_t first) {
    return given(data + rows.slot_class[slot] * width + first);
  };
  return write(x, rows, activation, row);
}

}  // namespace

at::Tensor gradient(
    const at::Tensor& features, at::TensorList rows, at::TensorList kept,
    const OptionalTensor& grad_penalty, const OptionalTensor& grad_gini,
    const OptionalTensor& grad_kl, int64_t activation, double gini_weight, double kl_weight) {
  const Features x(features);
  const auto run = [&](auto zero) {
    using Acc = decltype(zero);
    const Acc g1 = static_cast<Acc>(upstream<Acc>(grad_penalty, gini_weight, grad_gini));
    const Acc g2 = static_cast<Acc>(upstream<Acc>(grad_penalty, kl_weight, grad_kl));
    return gradient_as<Acc>(x, rows, kept, g1, g2, checked_activation(activation));
  };
  return x.in_double() ? run(double{}) : run(float{});
}

at::Tensor histogram_gradient(
    const at::Tensor& grad, const at::Tensor& features, at::TensorList rows, int64_t activation) {
  const Features x(features);
  const auto run = x.in_double() ? histogram_gradient_as<double> : histogram_gradient_as<float>;
  return run(x, rows, grad, checked_activation(activation));
}

}  // namespace discfused::cpu
