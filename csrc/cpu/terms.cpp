// features -> the table H -> penalty, gini, kl

#include <ATen/ops/empty.h>

#include <cmath>
#include <numeric>

#include "cpu/fresh_memory.h"
#include "cpu/kept.h"

namespace discfused::cpu {

namespace {

// The values of `impurity` in the operators: the places in IMPURITIES of _definitions.py.
enum Impurity : int64_t { kGini, kCollision, kImpurities };

constexpr double kProbabilityFloor = 1e-10;

// H and, summed over each range of slots, totals [ranges, 2, width]: of H and of its square
template <typename Acc>
void fill_table(
    const Features& x, const Rows<Acc>& rows, const std::vector<int64_t>& ranges, int activation,
    const Kept<Acc>& kept, Acc* totals) {
  const auto class_mean = kernels<Acc>().class_mean[activation][x.type];
  for_each_tile(ranges, x.N, x.D, [&](const Tile& tile) {
    const int64_t end = padded(tile.columns);
    Acc* total = totals + 2 * tile.range * kept.width + tile.first_column;
    Acc* squares = total + kept.width;
    std::fill(total, total + end, Acc(0));
    std::fill(squares, squares + end, Acc(0));
    const auto columns = x.columns(tile.first_column, tile.columns);
    for (int64_t slot = tile.first_slot; slot < tile.last_slot; ++slot) {
      Acc* H = kept.H + slot * kept.width + tile.first_column;
      std::fill(H + end - kPadding, H + end, Acc(0));
      class_mean(rows.of_slot(slot), columns, H, total, squares);
    }
  });
}

// 1 / T and sum_c P_c^2 of every feature.
template <typename Acc>
void normalize(
    const Kept<Acc>& kept, int64_t slots, const Acc* totals, int64_t ranges, Acc* squares) {
  constexpr int64_t kBlock = 1024;
  const int64_t width = kept.width, blocks = divide_up(width, kBlock);
  at::parallel_for(0, blocks, grain(2 * ranges * width, blocks), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kBlock; first < std::min(end * kBlock, width); first += kBlock) {
      const int64_t count = std::min(kBlock, width - first);
      Acc total[kBlock];
      kernels<Acc>().sum_rows(totals + first, ranges, 2 * width, count, total);
      kernels<Acc>().sum_rows(totals + width + first, ranges, 2 * width, count, squares + first);
      Acc* inverse = kept.inverse + first;
      if (!kernels<Acc>().normalize(total, count, inverse, squares + first)) continue;
      for (int64_t j = 0; j < count; ++j) {  // squares of P cannot leave the range
        double sum = 0;
        for (int64_t slot = 0; slot < slots; ++slot) {
          const double P = kept.H[slot * width + first + j] * inverse[j];
          sum += P * P;
        }
        squares[first + j] = static_cast<Acc>(sum > 1 ? 1 : sum);
      }
    }
  });
}

// The impurity term, and what the gradient needs of each feature for it. A dead feature and the
// padding have 0 in `inverse` and in `squares`.
template <typename Acc>
double impurity_term(
    const Kept<Acc>& kept, int64_t D, int64_t live, int64_t slots, int64_t impurity,
    const Acc* squares) {
  if (impurity == kCollision && slots > 1) {
    const double unit = static_cast<double>(D) * std::log(static_cast<double>(slots));
    const Acc factor = static_cast<Acc>(2 / unit);
    double sum = 0, product = 1;
    *kept.factor = 0;
    for (int64_t j = 0; j < kept.width; ++j) {
      const bool dead = kept.inverse[j] == 0;
      kept.constant[j] = dead ? 0 : factor;
      kept.slope[j] = dead ? 0 : factor * kept.inverse[j] / squares[j];
      if (!dead) product *= squares[j];
      // One logarithm for several squares, none of which is below 1 / slots.
      if (j % kPadding != kPadding - 1) continue;
      sum += std::log(product);
      product = 1;
    }
    return static_cast<double>(D - live) / static_cast<double>(D) - sum / unit;
  }
  const double alone = impurity == kCollision ? 0 : 1;  // 0, unless the features are not finite
  const Acc factor = static_cast<Acc>(alone * 2 / static_cast<double>(D));
  *kept.factor = factor;
  if (factor == 0) std::fill(kept.slope, kept.slope + kept.width, Acc(0));
  double sums[kPadding] = {};
  for (int64_t j = 0; j < kept.width; j += kPadding) {
    for (int64_t k = 0; k < kPadding; ++k) sums[k] += squares[j + k];
  }
  for (int64_t j = 0; j < kept.width; ++j) kept.constant[j] = factor * squares[j];
  const double sum = std::accumulate(sums, sums + kPadding, 0.0);
  return alone * (1 - sum / static_cast<double>(D));
}

// pi_c of every slot, from that of all classes or from the batch. Returns what the classes without
// a slot add to kl.
template <typename Acc>
double prior_of_slots(const Acc* given, const Rows<Acc>& rows, int64_t C, std::vector<double>& pi) {
  if (!given) {
    const double total = std::accumulate(rows.sizes, rows.sizes + rows.slots, 0.0);
    for (int64_t slot = 0; slot < rows.slots; ++slot) pi.push_back(rows.sizes[slot] / total);
    return 0;
  }
  double absent = 0;
  for (int64_t c = 0, slot = 0; c < C; ++c) {
    if (slot < rows.slots && rows.slot_class[slot] == c) {
      pi.push_back(given[c]);
      ++slot;
    } else if (given[c] != 0) {
      absent += given[c] * std::log(given[c] / kProbabilityFloor);
    }
  }
  return absent;
}

// kl, slot_coef and projection
template <typename Acc>
double divergence(
    const Kept<Acc>& kept, const std::vector<int64_t>& ranges, const std::vector<double>& prior,
    int64_t live) {
  const int64_t width = kept.width, count = static_cast<int64_t>(ranges.size()) - 1;
  constexpr int64_t kTogether[] = {0, 1, 2, 3};  // so many slots stay in the first-level cache
  const Numbers<Acc> projections(new Acc[count * width]);
  std::vector<double> partial(count);
  const int64_t numbers = 2 * ranges.back() * width;
  at::parallel_for(0, count, grain(numbers, count), [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range) {
      Acc* projection = projections.get() + range * width;
      std::fill(projection, projection + width, Acc(0));
      const int64_t last = ranges[range + 1];
      for (int64_t slot = ranges[range], next; slot < last; slot = next) {
        next = std::min<int64_t>(slot + std::size(kTogether), last);
        for (int64_t k = slot; k < next; ++k) {
          const double q = kernels<Acc>().dot(kept.H + k * width, kept.inverse, width) /
                           static_cast<double>(live);
          const double pi = prior[k];
          const bool clamped = q < kProbabilityFloor;
          if (pi != 0) partial[range] += pi * std::log(pi / (clamped ? kProbabilityFloor : q));
          const double A = clamped || pi == 0 ? 0 : -pi / q;
          kept.slot_coef[k] = static_cast<Acc>(A / static_cast<double>(live));
        }
        kernels<Acc>().add_weighted(
            {kTogether, kept.slot_coef + slot, next - slot}, {kept.H + slot * width, width, width},
            kept.inverse, projection);
      }
    }
  });
  kernels<Acc>().sum_rows(projections.get(), count, width, width, kept.projection);
  return std::accumulate(partial.begin(), partial.end(), 0.0);
}

template <typename Acc>
auto terms_as(
    const Features& x, at::TensorList row_tensors, int64_t C, const OptionalTensor& prior,
    int activation, int64_t impurity, double gini_weight, double kl_weight) {
  const at::TensorOptions options = x.accumulated();
  const Rows<Acc> rows(row_tensors, x.N, C);
  const int64_t S = is_soft(row_tensors) ? C : std::min(x.N, C);
  at::Tensor memory = at::empty({Kept<Acc>::numbers(S, x.D)}, options);
  const Kept<Acc> kept(memory.mutable_data_ptr<Acc>(), S, x.D);
  prepare(kept.H, rows.slots * kept.width * sizeof(Acc));
  double gini = 0, kl = 0;
  if (rows.slots > 0) {
    const std::vector<int64_t> ranges = slot_ranges(rows);
    const int64_t count = static_cast<int64_t>(ranges.size()) - 1;
    const Numbers<Acc> totals(new Acc[2 * count * kept.width]);
    const Numbers<Acc> squares(new Acc[kept.width]);
    fill_table(x, rows, ranges, activation, kept, totals.get());
    normalize(kept, rows.slots, totals.get(), count, squares.get());
    const int64_t live = kept.width - std::count(kept.inverse, kept.inverse + kept.width, Acc(0));
    gini = impurity_term(kept, x.D, live, rows.slots, impurity, squares.get());
    at::Tensor given;
    if (prior) {
      check_shape(*prior, {C}, "prior");
      given = prior->contiguous();
    }
    std::vector<double> pi;
    const double absent =
        prior_of_slots(prior ? given.const_data_ptr<Acc>() : nullptr, rows, C, pi);
    kl = divergence(kept, ranges, pi, std::max<int64_t>(live, 1)) + absent;
    if (kl < 0 || live == 0) kl = 0;  // below 0 by rounding
  }
  const auto scalar = [&](double value) {
    at::Tensor tensor = at::empty({}, options);
    *tensor.mutable_data_ptr<Acc>() = static_cast<Acc>(value);
    return tensor;
  };
  return std::make_tuple(
      scalar(gini_weight * gini + kl_weight * kl), scalar(gini), scalar(kl),
      std::vector<at::Tensor>{memory});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> terms(
    const at::Tensor& features, at::TensorList rows, int64_t num_classes,
    const OptionalTensor& prior, int64_t activation, int64_t impurity, double gini_weight,
    double kl_weight) {
  const Features x(features);
  TORCH_CHECK_VALUE(
      impurity >= 0 && impurity < kImpurities, "impurity is ", impurity, ", expected 0 or 1");
  const auto run = x.in_double() ? terms_as<double> : terms_as<float>;
  return run(
      x, rows, num_classes, prior, checked_activation(activation), impurity, gini_weight,
      kl_weight);
}

}  // namespace discfused::cpu
