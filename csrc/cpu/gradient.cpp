// features, table -> d loss / d features

#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/ops.h"
#include "disc_math.h"

namespace discfused::cpu {

namespace {

// d loss / d features, as bytes: [N, D] of the type of features.
struct Output {
  explicit Output(const at::Tensor& dx)
      : data(static_cast<char*>(dx.mutable_data_ptr())),
        element_bytes(static_cast<int64_t>(dx.element_size())),
        row_bytes(dx.size(1) * element_bytes),
        bytes(dx.size(0) * row_bytes) {}

  char* at(int64_t row, int64_t column) const {
    return data + row * row_bytes + column * element_bytes;
  }

  // It will not be found in the caches again, and is likely to be memory fresh from the system.
  bool large() const { return bytes >= int64_t{8} << 20; }

  bool rows_aligned() const {
    return reinterpret_cast<uintptr_t>(data) % kAlignment == 0 && row_bytes % kAlignment == 0;
  }

  char* data;
  int64_t element_bytes, row_bytes, bytes;
};

// Asks for huge pages, as NumPy does for its arrays: a block touches a page in nearly every row,
// and the first use of so many small pages takes longer than all that is computed here.
void advise_huge_pages([[maybe_unused]] const Output& output) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(output.data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + output.bytes) / kHugePage * kHugePage;
  // A hint: whether the system follows it changes no result.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// What turns the table into its gradient: see FeaturePull in disc_math.h.
template <typename Acc>
class TablePull {
 public:
  // The table is its own gradient.
  explicit TablePull(int64_t S) : slot_offset_(S) {}

  TablePull(const Acc* feature_coef, int64_t D, const Acc* slot_coef, int64_t S, Acc g1, Acc g2)
      : feature_coef_(feature_coef), D_(D), g1_(g1), g2_(g2), slot_offset_(S) {
    for (int64_t s = 0; s < S; ++s) slot_offset_[s] = g2 * slot_coef[s];
  }

  struct Columns {
    ColumnValues<Acc> outer, constant, slope;
  };

  Pull<Acc> block(int64_t column, Span span, Columns& columns) const {
    columns.outer.fill(feature_coef_ ? 0 : 1);
    columns.constant.fill(0);
    columns.slope.fill(1);
    for (int64_t j = 0; feature_coef_ && j < span.columns; ++j) {
      const Acc* coef = feature_coef_ + column + j;
      const FeaturePull<Acc> pull =
          feature_pull(coef[0], coef[D_], coef[2 * D_], coef[3 * D_], g1_, g2_);
      columns.outer[j] = pull.outer;
      columns.constant[j] = pull.constant;
      columns.slope[j] = pull.slope;
    }
    return {columns.outer, columns.constant, columns.slope, slot_offset_.data()};
  }

 private:
  const Acc* feature_coef_ = nullptr;  // [4, D]
  int64_t D_ = 0;
  Acc g1_ = 0, g2_ = 0;
  std::vector<Acc> slot_offset_;
};

template <typename Acc>
void gradient_blocks(
    const Features& features, const RowPlan<Acc>& plan, Acc total, int activation,
    const Acc* given_mean, const Acc* table, const TablePull<Acc>& table_pull,
    const Output& output) {
  using Chunk = typename RowPlan<Acc>::Chunk;
  const Kernels<Acc>& kernel = kernels<Acc>();
  const int64_t D = features.D;
  const bool stream = output.large() && output.rows_aligned();
  parallel_blocks<Acc>(D, features.N, [&](int64_t begin, int64_t end) {
    const Range columns = block_range<Acc>(begin, end, D);
    for (int64_t k = plan.rows; k < features.N; ++k) {
      std::memset(output.at(plan.order[k], columns.first), 0, columns.count * output.element_bytes);
    }
    PackedRows<Acc> rows(features, plan);
    const Scratch<Acc> grads(kChunkRows * kBlockColumns<Acc>);
    ColumnValues<Acc> mean, sum, shift;
    typename TablePull<Acc>::Columns pull_columns;
    for (int64_t block = begin; block < end; ++block) {
      rows.start(block);
      const Span span = rows.span();
      const int64_t column = block * kBlockColumns<Acc>;
      const Pull<Acc> pull = table_pull.block(column, span, pull_columns);

      const auto differentiate = [&](const Chunk& chunk, int64_t, Acc* packed) {
        const Runs<Acc> runs = chunk.view();
        const Table<const Acc> block_table{table + column, D};
        if (plan.one_entry_per_row) {
          kernel.differentiate[activation](packed, mean, runs, pull, span, block_table, sum);
        } else {
          std::memset(grads.get(), 0, chunk.rows * span.width * sizeof(Acc));
          kernel.spread(grads.get(), runs, pull, span, block_table);
          kernel.pull_back[activation](packed, mean, grads.get(), chunk.rows, span, sum);
        }
      };
      const auto write = [&](const Chunk& chunk, int64_t first, Acc* packed) {
        kernel.unpack[features.type](
            packed, plan.weight.data() + first, shift, plan.order.data() + first, chunk.rows, span,
            {output.at(0, column), D, stream});
      };
      const auto differentiate_and_write = [&](const Chunk& chunk, int64_t first, Acc* packed) {
        differentiate(chunk, first, packed);
        write(chunk, first, packed);
      };

      sum.fill(0);
      shift.fill(0);
      if (given_mean) {
        mean.read(given_mean + column, span);
        rows.for_each_chunk(differentiate);
        // Every row has moved the mean, and with it all the others.
        for (int64_t j = 0; j < span.width; ++j) shift[j] = sum[j] / total;
        if (rows.resident()) {
          rows.for_each_chunk(write);
        } else {
          rows.for_each_chunk(differentiate_and_write);
        }
      } else {
        mean.fill(0);
        rows.for_each_chunk(differentiate_and_write);
      }
    }
  });
}

// Tensors as the bindings take them; feature_coef and slot_coef come and go together.
struct PullTensors {
  const std::optional<at::Tensor>&feature_coef, &slot_coef, &grad_gini, &grad_kl;
  double gini_weight, kl_weight;
};

template <typename Acc>
at::Tensor gradient_as(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft,
    const std::optional<at::Tensor>& mean, const at::Tensor& table, int activation,
    const PullTensors& pull) {
  const Features x(features);
  const int64_t S = table.size(0);
  check_shape(table, {S, x.D}, "table");
  const RowPlan<Acc> plan = make_plan<Acc>(slot, row_weight, soft, x.N, S);

  at::Tensor rows_of_table = table.contiguous(), means, feature_coef, slot_coef;
  if (mean) {
    check_shape(*mean, {x.D}, "mean");
    means = mean->contiguous();
  }
  TablePull<Acc> table_pull(S);
  if (pull.feature_coef) {
    TORCH_CHECK_VALUE(
        pull.slot_coef && pull.grad_gini && pull.grad_kl,
        "slot_coef, grad_gini and grad_kl go with feature_coef, but one of them is None");
    check_shape(*pull.feature_coef, {4, x.D}, "feature_coef");
    check_shape(*pull.slot_coef, {S}, "slot_coef");
    feature_coef = pull.feature_coef->contiguous();
    slot_coef = pull.slot_coef->contiguous();
    table_pull = TablePull<Acc>(
        feature_coef.const_data_ptr<Acc>(), x.D, slot_coef.const_data_ptr<Acc>(), S,
        scalar<Acc>(*pull.grad_gini, "grad_gini") * static_cast<Acc>(pull.gini_weight),
        scalar<Acc>(*pull.grad_kl, "grad_kl") * static_cast<Acc>(pull.kl_weight));
  }
  at::Tensor dx = at::empty({x.N, x.D}, features.options());
  const Output output(dx);
  if (output.large()) advise_huge_pages(output);
  gradient_blocks<Acc>(
      x, plan, nonzero(scalar<Acc>(total, "total")), activation,
      mean ? means.const_data_ptr<Acc>() : nullptr, rows_of_table.const_data_ptr<Acc>(), table_pull,
      output);
  return dx;
}

}  // namespace

at::Tensor gradient(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft,
    const std::optional<at::Tensor>& mean, const at::Tensor& table, int64_t activation,
    const std::optional<at::Tensor>& feature_coef, const std::optional<at::Tensor>& slot_coef,
    const std::optional<at::Tensor>& grad_gini, const std::optional<at::Tensor>& grad_kl,
    double gini_weight, double kl_weight) {
  const auto run = features.scalar_type() == at::kDouble ? gradient_as<double> : gradient_as<float>;
  return run(
      features, slot, row_weight, total, soft, mean, table, checked_activation(activation),
      {feature_coef, slot_coef, grad_gini, grad_kl, gini_weight, kl_weight});
}

}  // namespace discfused::cpu
