// features -> penalty, gini, kl, and what backward needs to know

#include <vector>

#include "cpu/block_histogram.h"
#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/memory.h"
#include "cpu/moments.h"
#include "cpu/ops.h"
#include "disc_math.h"

namespace discfused::cpu {

namespace {

// Sums over columns and over classes go block by block, so that their order does not depend on how
// many threads there are. The sums of blocks are few: they can afford double.
constexpr int64_t kSlotBlock = 1024;

struct FeatureStatistics {
  double impurity = 0;
  int64_t live = 0;
};

template <typename Acc>
struct Coefs {
  Acc* mean;     // [D], or null for features that are not centred
  Acc* feature;  // [3, D]: 1 / (L T_j), 1 / T_j, sum_c P_cj^2
  Acc* slot;     // [S]: A_c
};

// Mean, 1 / T and sum_c P_c^2 of every feature; class_sum [blocks, slots of the plan] = sum of P
// over each block. The table leaves the cache only where it is saved for backward.
template <typename Acc>
FeatureStatistics summarize_features(
    const Features& x, const RowPlan<Acc>& plan, Acc total, int activation, Acc eps,
    const Coefs<Acc>& coefs, Acc* class_sum, const SavedBlocks<Acc>& saved) {
  const int64_t slots = static_cast<int64_t>(plan.slots.size());
  std::vector<FeatureStatistics> partial(block_count<Acc>(x.D));
  const Moments<Acc> moments(x, plan, activation, total, coefs.mean);
  parallel_blocks<Acc>(x.D, x.N, [&](const auto& for_each_block) {
    BlockHistogram<Acc> histogram(x, plan, activation);
    ColumnValues<Acc> mean, mass, magnitude, inverse, squares;
    for_each_block([&](int64_t block) {
      histogram.start(block, saved.at(block));
      const Span span = histogram.span();
      const int64_t column = block * kBlockColumns<Acc>;
      moments.of_block(block, histogram.rows(), mean, magnitude);
      mass.fill(0);
      histogram.fill(mean, mass, Look::kInPlace);
      kernels<Acc>().summarize(
          histogram.table().as_const(), slots, mass, magnitude, eps, span, inverse, squares,
          class_sum + block * slots);
      inverse.write(coefs.feature + x.D + column, span);
      squares.write(coefs.feature + 2 * x.D + column, span);
      for (int64_t j = 0; j < span.columns; ++j) {
        if (inverse[j] == 0) continue;
        partial[block].impurity += gini_impurity(squares[j]);
        ++partial[block].live;
      }
    });
  });
  FeatureStatistics sum;
  for (const FeatureStatistics& block : partial) {
    sum.impurity += block.impurity;
    sum.live += block.live;
  }
  return sum;
}

// q of every slot: the sum of P over all features, divided by how many live.
template <typename Acc>
std::vector<double> feature_distribution(
    const RowPlan<Acc>& plan, int64_t blocks, int64_t S, int64_t live, const Acc* class_sum) {
  const int64_t slots = static_cast<int64_t>(plan.slots.size());
  std::vector<double> sum(slots);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t k = 0; k < slots; ++k) sum[k] += class_sum[block * slots + k];
  }
  std::vector<double> q(S);
  for (int64_t k = 0; k < slots; ++k) q[plan.slots[k]] = sum[k];
  for (double& share : q) share /= static_cast<double>(live);
  return q;
}

// The divergence between q and the prior, and its slope A_c for every slot.
template <typename Acc>
double compare_classes(const std::vector<double>& q, const Acc* priors, bool reverse, Acc* slopes) {
  const int64_t S = static_cast<int64_t>(q.size());
  const int64_t blocks = (S + kSlotBlock - 1) / kSlotBlock;
  std::vector<double> partial(blocks);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min((block + 1) * kSlotBlock, S);
      for (int64_t s = block * kSlotBlock; s < last; ++s) {
        const double prior = priors[s];
        partial[block] += reverse ? divergence_term(q[s], prior) : divergence_term(prior, q[s]);
        slopes[s] = static_cast<Acc>(divergence_slope(prior, q[s], reverse));
      }
    }
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

template <typename Acc>
auto terms_as(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, const at::Tensor& prior,
    const std::optional<at::Tensor>& absent, int activation, bool center, bool reverse, double eps,
    double gini_weight, double kl_weight, bool save, at::ScalarType acc) {
  const Features x(features);
  const int64_t S = prior.size(0);
  const RowPlan<Acc> plan = make_plan<Acc>(slot, row_weight, soft, x.N, S);
  check_shape(prior, {S}, "prior");
  const at::Tensor priors = prior.contiguous();

  const auto options = features.options().dtype(acc);
  std::optional<at::Tensor> mean;
  if (center) mean = empty_kept({x.D}, options);
  at::Tensor feature_coef = empty_kept({3, x.D}, options);
  at::Tensor slot_coef = empty_kept({S}, options);
  const Coefs<Acc> coefs{
      center ? mean->mutable_data_ptr<Acc>() : nullptr, feature_coef.mutable_data_ptr<Acc>(),
      slot_coef.mutable_data_ptr<Acc>()};
  SavedBlocks<Acc> blocks_to_save(plan, S, x.D);
  std::optional<at::Tensor> saved;
  if (save && blocks_to_save.elements() > 0) {
    TORCH_CHECK_VALUE(
        !soft && activation == static_cast<int>(Activation::kRelu),
        "save is for hard labels and relu");
    saved = empty_kept({blocks_to_save.elements()}, options);
    blocks_to_save.use(saved->mutable_data_ptr<Acc>());
  }
  const int64_t blocks = block_count<Acc>(x.D);
  std::vector<Acc> class_sum(blocks * plan.slots.size());

  double gini = 0, kl = 0;
  const FeatureStatistics statistics = summarize_features(
      x, plan, nonzero(scalar<Acc>(total, "total")), activation, static_cast<Acc>(eps), coefs,
      class_sum.data(), blocks_to_save);
  if (statistics.live > 0) {
    gini = statistics.impurity / static_cast<double>(statistics.live);
    const std::vector<double> q =
        feature_distribution(plan, blocks, S, statistics.live, class_sum.data());
    kl = compare_classes(q, priors.const_data_ptr<Acc>(), reverse, coefs.slot);
    if (absent && !reverse) kl += scalar<Acc>(*absent, "absent");
    kl = nonnegative(kl);
    for (int64_t j = 0; j < x.D; ++j) {
      coefs.feature[j] = coefs.feature[x.D + j] / static_cast<Acc>(statistics.live);
    }
  } else {
    feature_coef.zero_();
    slot_coef.zero_();
  }

  const auto result = [&](double value) {
    at::Tensor tensor = empty_kept({}, options);
    *tensor.mutable_data_ptr<Acc>() = static_cast<Acc>(value);
    return tensor;
  };
  return std::make_tuple(
      result(gini_weight * gini + kl_weight * kl), result(gini), result(kl), mean, feature_coef,
      slot_coef, saved);
}

}  // namespace

std::tuple<
    at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, at::Tensor, at::Tensor,
    std::optional<at::Tensor>>
terms(
    const at::Tensor& features, const at::Tensor& slot, const at::Tensor& row_weight,
    const at::Tensor& total, const std::optional<at::Tensor>& soft, const at::Tensor& prior,
    const std::optional<at::Tensor>& absent, int64_t activation, bool center, bool reverse,
    double eps, double gini_weight, double kl_weight, bool save) {
  const bool in_double = features.scalar_type() == at::kDouble;
  const auto run = in_double ? terms_as<double> : terms_as<float>;
  return run(
      features, slot, row_weight, total, soft, prior, absent, checked_activation(activation),
      center, reverse, eps, gini_weight, kl_weight, save, in_double ? at::kDouble : at::kFloat);
}

}  // namespace discfused::cpu
