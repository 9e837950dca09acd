// table -> penalty, gini, kl, and what backward needs of them

#include <ATen/ops/empty.h>

#include <vector>

#include "cpu/blocks.h"
#include "cpu/checks.h"
#include "cpu/ops.h"
#include "disc_math.h"

namespace discfused::cpu {

namespace {

// Sums over columns and over classes go block by block, so that their order does not depend on how
// many threads there are. The sums of blocks are few: they can afford double.
constexpr int64_t kSlotBlock = 256;

template <typename Acc>
struct TermsInput {
  const Acc* table;  // [S, D]
  const Acc* magnitude;
  const Acc* prior;
  int64_t S, D;
  bool reverse;
};

template <typename Acc>
struct Coefs {
  Acc* feature;  // [4, D]
  Acc* slot;     // [S]
};

struct FeatureStatistics {
  double impurity = 0;
  int64_t live = 0;
};

// 1 / T and sum_c P_c^2 of every feature; class_sum [blocks, S] = sum of P over each block
template <typename Acc>
FeatureStatistics summarize_features(
    const TermsInput<Acc>& in, Acc eps, const Coefs<Acc>& coefs, Acc* class_sum) {
  std::vector<FeatureStatistics> partial(block_count<Acc>(in.D));
  parallel_blocks<Acc>(in.D, in.S, [&](int64_t begin, int64_t end) {
    ColumnValues<Acc> magnitude, inverse, squares;
    for (int64_t block = begin; block < end; ++block) {
      const Span span = block_span<Acc>(block, in.D);
      const int64_t column = block * kBlockColumns<Acc>;
      magnitude.read(in.magnitude + column, span);
      kernels<Acc>().summarize(
          {in.table + column, in.D}, in.S, magnitude, eps, span, inverse, squares,
          class_sum + block * in.S);
      inverse.write(coefs.feature + in.D + column, span);
      squares.write(coefs.feature + 2 * in.D + column, span);
      for (int64_t j = 0; j < span.columns; ++j) {
        if (inverse[j] == 0) continue;
        partial[block].impurity += gini_impurity(squares[j]);
        ++partial[block].live;
      }
    }
  });
  FeatureStatistics sum;
  for (const FeatureStatistics& block : partial) {
    sum.impurity += block.impurity;
    sum.live += block.live;
  }
  return sum;
}

// The divergence between q = class_sum / live and the prior, and its slope A_c for every slot.
template <typename Acc>
double compare_classes(
    const TermsInput<Acc>& in, int64_t live, const Coefs<Acc>& coefs, const Acc* class_sum) {
  const int64_t blocks = (in.S + kSlotBlock - 1) / kSlotBlock;
  std::vector<double> partial(blocks);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min((block + 1) * kSlotBlock, in.S);
      for (int64_t s = block * kSlotBlock; s < last; ++s) {
        double q = 0;
        for (int64_t b = 0; b < block_count<Acc>(in.D); ++b) q += class_sum[b * in.S + s];
        q /= static_cast<double>(live);
        const double prior = in.prior[s];
        partial[block] += in.reverse ? divergence_term(q, prior) : divergence_term(prior, q);
        coefs.slot[s] = static_cast<Acc>(divergence_slope(prior, q, in.reverse));
      }
    }
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

// 1 / (L T) and sum_c A_c P_c of every feature
template <typename Acc>
void project_features(const TermsInput<Acc>& in, int64_t live, const Coefs<Acc>& coefs) {
  parallel_blocks<Acc>(in.D, in.S, [&](int64_t begin, int64_t end) {
    ColumnValues<Acc> projection;
    for (int64_t block = begin; block < end; ++block) {
      const Span span = block_span<Acc>(block, in.D);
      const int64_t column = block * kBlockColumns<Acc>;
      kernels<Acc>().project({in.table + column, in.D}, in.S, coefs.slot, span, projection);
      for (int64_t j = 0; j < span.columns; ++j) {
        Acc* coef = coefs.feature + column + j;
        const Acc inverse = coef[in.D];
        coef[0] = inverse / static_cast<Acc>(live);
        coef[3 * in.D] = inverse == 0 ? 0 : inverse * projection[j];
      }
    }
  });
}

template <typename Acc>
auto terms_as(
    const at::Tensor& table, const at::Tensor& magnitude, const at::Tensor& prior,
    const std::optional<at::Tensor>& absent, bool reverse, double eps, double gini_weight,
    double kl_weight) {
  const int64_t S = table.size(0), D = table.size(1);
  check_shape(magnitude, {D}, "magnitude");
  check_shape(prior, {S}, "prior");
  const at::Tensor H = table.contiguous(), scale = magnitude.contiguous(), pi = prior.contiguous();
  const TermsInput<Acc> in{H.const_data_ptr<Acc>(),
                           scale.const_data_ptr<Acc>(),
                           pi.const_data_ptr<Acc>(),
                           S,
                           D,
                           reverse};

  at::Tensor feature_coef = at::empty({4, D}, table.options());
  at::Tensor slot_coef = at::empty({S}, table.options());
  const Coefs<Acc> coefs{feature_coef.mutable_data_ptr<Acc>(), slot_coef.mutable_data_ptr<Acc>()};
  const Scratch<Acc> class_sum(block_count<Acc>(D) * S);

  double gini = 0, kl = 0;
  const FeatureStatistics features =
      summarize_features(in, static_cast<Acc>(eps), coefs, class_sum.get());
  if (features.live > 0) {
    gini = features.impurity / static_cast<double>(features.live);
    kl = compare_classes(in, features.live, coefs, class_sum.get());
    if (absent && !reverse) kl += scalar<Acc>(*absent, "absent");
    kl = nonnegative(kl);
    project_features(in, features.live, coefs);
  } else {
    feature_coef.zero_();
    slot_coef.zero_();
  }

  const auto result = [&](double value) {
    at::Tensor tensor = at::empty({}, table.options());
    *tensor.mutable_data_ptr<Acc>() = static_cast<Acc>(value);
    return tensor;
  };
  return std::make_tuple(
      result(gini_weight * gini + kl_weight * kl), result(gini), result(kl), feature_coef,
      slot_coef);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> terms(
    const at::Tensor& table, const at::Tensor& magnitude, const at::Tensor& prior,
    const std::optional<at::Tensor>& absent, bool reverse, double eps, double gini_weight,
    double kl_weight) {
  const auto run = table.scalar_type() == at::kDouble ? terms_as<double> : terms_as<float>;
  return run(table, magnitude, prior, absent, reverse, eps, gini_weight, kl_weight);
}

}  // namespace discfused::cpu
