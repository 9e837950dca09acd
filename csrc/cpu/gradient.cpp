// features, gradient of the table -> d loss / d features

#include <cstring>
#include <vector>

#include "cpu/block_histogram.h"
#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/memory.h"
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

  // It will not be found in the caches again.
  bool large() const { return bytes >= int64_t{8} << 20; }

  bool rows_aligned() const {
    return reinterpret_cast<uintptr_t>(data) % kAlignment == 0 && row_bytes % kAlignment == 0;
  }

  char* data;
  int64_t element_bytes, row_bytes, bytes;
};

// The upstream gradient: either of the table, or of gini and kl, from which that of the table
// follows.
template <typename Acc>
struct Upstream {
  const Acc* grad_table;    // [S, D], or null
  const Acc* feature_coef;  // [3, D], from terms
  const Acc* slot_coef;     // [S], from terms
  Acc g1, g2;               // of gini and kl, with their weights
};

// The gradient of a block of the table: the table itself and what turns it into its gradient.
template <typename Acc>
class BlockGradient {
 public:
  BlockGradient(const Upstream<Acc>& upstream, const std::vector<int32_t>& slots, int64_t D)
      : upstream_(upstream),
        slots_(slots),
        D_(D),
        slot_coef_(slots.size()),
        slot_offset_(slots.size()) {
    if (upstream.grad_table) return;
    for (size_t k = 0; k < slots.size(); ++k) {
      slot_coef_[k] = upstream.slot_coef[slots[k]];
      slot_offset_[k] = upstream.g2 * slot_coef_[k];
    }
  }

  // `table` holds the histogram of the block; a given gradient is written over it.
  void start(int64_t column, Span span, const Table<Acc>& table) {
    for (ColumnValues<Acc>* values : {&projection_, &slope_sum_, &slope_table_, &slope_coef_}) {
      values->fill(0);
    }
    if (!upstream_.grad_table) return;
    for (size_t k = 0; k < slots_.size(); ++k) {
      const Acc* row = upstream_.grad_table + slots_[k] * D_ + column;
      std::copy(row, row + span.columns, table.data + k * table.stride);
    }
  }

  // To be filled before pull() and shift().
  Correlations<Acc> correlations() { return {projection_, slope_sum_, slope_table_, slope_coef_}; }
  const Acc* slot_coef() const { return slot_coef_.data(); }

  Pull<Acc> pull(int64_t column, Span span) {
    const Acc given = upstream_.grad_table ? 1 : 0;
    outer_.fill(given);
    constant_.fill(0);
    slope_.fill(given);
    for (int64_t j = 0; j < span.columns && !upstream_.grad_table; ++j) {
      const Acc* coef = upstream_.feature_coef + column + j;
      const Acc inverse = coef[D_];
      const FeaturePull<Acc> pull = feature_pull(
          coef[0], inverse, coef[2 * D_], inverse == 0 ? Acc(0) : inverse * projection_[j],
          upstream_.g1, upstream_.g2);
      outer_[j] = pull.outer;
      constant_[j] = pull.constant;
      slope_[j] = pull.slope;
    }
    return {outer_, constant_, slope_, slot_offset_.data()};
  }

  // sum_s F_s G_s: every row has moved the mean, and with it all the others. After pull().
  void shift(Span span, ColumnValues<Acc>& shift) {
    for (int64_t j = 0; j < span.width; ++j) {
      const Acc sum = constant_[j] * slope_sum_[j] + slope_[j] * slope_table_[j] +
                      upstream_.g2 * slope_coef_[j];
      shift[j] = outer_[j] == 0 ? Acc(0) : outer_[j] * sum;
    }
  }

 private:
  const Upstream<Acc>& upstream_;
  const std::vector<int32_t>& slots_;
  int64_t D_;
  ColumnValues<Acc> projection_, slope_sum_, slope_table_, slope_coef_;
  ColumnValues<Acc> outer_, constant_, slope_;
  std::vector<Acc> slot_coef_, slot_offset_;
};

template <typename Acc>
void gradient_blocks(
    const Features& x, const RowPlan<Acc>& plan, Acc total, int activation, const Acc* given_mean,
    const Upstream<Acc>& upstream, const SavedBlocks<Acc>& saved, const Output& output) {
  using Chunk = typename RowPlan<Acc>::Chunk;
  const Kernels<Acc>& kernel = kernels<Acc>();
  const int64_t slots = static_cast<int64_t>(plan.slots.size());
  const bool stream = output.large() && output.rows_aligned();
  const bool centered = given_mean != nullptr;
  const Acc scale = 1 / total;
  const bool looks_back = centered || !upstream.grad_table;  // at the histogram
  const bool by_signs =
      looks_back && plan.one_entry_per_row && activation == static_cast<int>(Activation::kRelu);
  const Slope slope = by_signs ? Slope::kSigns : centered ? Slope::kTable : Slope::kNone;
  parallel_blocks<Acc>(x.D, x.N, [&](const auto& for_each_block) {
    BlockHistogram<Acc> histogram(x, plan, activation, slope);
    BlockGradient<Acc> gradient(upstream, plan.slots, x.D);
    const Scratch<Acc> grads(plan.one_entry_per_row ? 0 : kChunkRows * kBlockColumns<Acc>);
    ColumnValues<Acc> mean, shift;
    for_each_block([&](int64_t block) {
      const auto place = saved.at(block);
      histogram.start(block, place);
      const Span span = histogram.span();
      const int64_t column = block * kBlockColumns<Acc>;
      for (int64_t k = plan.rows; k < x.N; ++k) {
        std::memset(output.at(plan.order[k], column), 0, span.columns * output.element_bytes);
      }
      const Table<const Acc> table = histogram.table().as_const();
      centered ? mean.read(given_mean + column, span) : mean.fill(0);
      if (!place.table && looks_back) {
        histogram.fill(mean, nullptr, by_signs ? Look::kInPlace : Look::kPacked);
      }
      gradient.start(column, span, histogram.table());
      if (by_signs) {
        histogram.rows().for_each_signed_chunk([&](const Chunk& chunk, const RowChunk<Acc>& rows) {
          kernel.correlate_signs(
              rows, chunk.view(), table, gradient.slot_coef(), scale, span,
              gradient.correlations());
        });
      } else if (looks_back) {
        kernel.correlate(
            table, histogram.slopes().as_const(), slots, gradient.slot_coef(), scale, span,
            gradient.correlations());
      }
      const Pull<Acc> pull = gradient.pull(column, span);
      shift.fill(0);
      if (centered) gradient.shift(span, shift);

      const Target target{output.at(0, column), x.D, stream};
      if (by_signs) {
        histogram.rows().for_each_signed_chunk([&](const Chunk& chunk, const RowChunk<Acc>& rows) {
          kernel.write_signs[x.type](rows, shift, chunk.view(), pull, span, table, target);
        });
        return;
      }
      histogram.rows().for_each_chunk(
          Look::kPacked, [&](const Chunk& chunk, const RowChunk<Acc>& packed) {
            const Runs<Acc> runs = chunk.view();
            if (plan.one_entry_per_row) {
              kernel.write[activation][x.type](
                  packed, mean, shift, runs, pull, span, table, target);
            } else {
              std::memset(grads.get(), 0, chunk.rows * span.width * sizeof(Acc));
              kernel.spread(grads.get(), runs, pull, span, table);
              kernel.write_spread[activation][x.type](
                  packed, mean, shift, grads.get(), span, target);
            }
          });
    });
    if (stream) fence_streams();
  });
}

// Tensors as the bindings take them: grad_table, or all the others.
struct UpstreamTensors {
  const std::optional<at::Tensor>&grad_table, &feature_coef, &slot_coef, &grad_gini, &grad_kl;
  double gini_weight, kl_weight;
};

template <typename Acc>
at::Tensor gradient_as(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft,
    const std::optional<at::Tensor>& mean, int activation, const UpstreamTensors& tensors,
    const std::optional<at::Tensor>& saved) {
  const Features x(features);
  at::Tensor means, grad_table, feature_coef, slot_coef;
  if (mean) {
    check_shape(*mean, {x.D}, "mean");
    means = mean->contiguous();
  }
  Upstream<Acc> upstream{};
  int64_t S = 0;
  if (tensors.grad_table) {
    S = tensors.grad_table->size(0);
    check_shape(*tensors.grad_table, {S, x.D}, "grad_table");
    grad_table = tensors.grad_table->contiguous();
    upstream.grad_table = grad_table.const_data_ptr<Acc>();
  } else {
    TORCH_CHECK_VALUE(
        tensors.feature_coef && tensors.slot_coef && tensors.grad_gini && tensors.grad_kl,
        "without grad_table, feature_coef, slot_coef, grad_gini and grad_kl are needed, but one of "
        "them is None");
    S = tensors.slot_coef->size(0);
    check_shape(*tensors.feature_coef, {3, x.D}, "feature_coef");
    check_shape(*tensors.slot_coef, {S}, "slot_coef");
    feature_coef = tensors.feature_coef->contiguous();
    slot_coef = tensors.slot_coef->contiguous();
    upstream.feature_coef = feature_coef.const_data_ptr<Acc>();
    upstream.slot_coef = slot_coef.const_data_ptr<Acc>();
    upstream.g1 =
        scalar<Acc>(*tensors.grad_gini, "grad_gini") * static_cast<Acc>(tensors.gini_weight);
    upstream.g2 = scalar<Acc>(*tensors.grad_kl, "grad_kl") * static_cast<Acc>(tensors.kl_weight);
  }
  const RowPlan<Acc> plan = make_plan<Acc>(slot, row_weight, soft, x.N, S);
  SavedBlocks<Acc> blocks(plan, S, x.D);
  at::Tensor memory;
  if (saved) {
    check_shape(*saved, {blocks.elements()}, "saved");
    memory = saved->contiguous();
    const auto address = reinterpret_cast<uintptr_t>(memory.const_data_ptr());
    if (address % kAlignment) memory = memory.clone();  // a hook of autograd has moved it
    blocks.use(memory.mutable_data_ptr<Acc>());
  }
  at::Tensor dx = empty_kept({x.N, x.D}, features.options());
  const Output output(dx);
  gradient_blocks<Acc>(
      x, plan, nonzero(scalar<Acc>(total, "total")), activation,
      mean ? means.const_data_ptr<Acc>() : nullptr, upstream, blocks, output);
  return dx;
}

}  // namespace

at::Tensor gradient(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft,
    const std::optional<at::Tensor>& mean, int64_t activation,
    const std::optional<at::Tensor>& grad_table, const std::optional<at::Tensor>& feature_coef,
    const std::optional<at::Tensor>& slot_coef, const std::optional<at::Tensor>& grad_gini,
    const std::optional<at::Tensor>& grad_kl, double gini_weight, double kl_weight,
    const std::optional<at::Tensor>& saved) {
  const auto run = features.scalar_type() == at::kDouble ? gradient_as<double> : gradient_as<float>;
  return run(
      features, slot, row_weight, total, soft, mean, checked_activation(activation),
      {grad_table, feature_coef, slot_coef, grad_gini, grad_kl, gini_weight, kl_weight}, saved);
}

}  // namespace discfused::cpu
