// features -> the table H -> penalty, gini, kl

#include <ATen/ops/empty.h>

#include <cmath>

#include "cpu/fresh_memory.h"
#include "cpu/kept.h"

namespace discfused::cpu {

namespace {

// The values of `impurity` in the operators: the places in IMPURITIES of _definitions.py.
enum Impurity : int64_t { kGini, kCollision, kImpurities };

constexpr double kProbabilityFloor = 1e-10;
constexpr int64_t kSquaresOfALogarithm = 16;

// H and, summed over each range of slots, totals [ranges, 2, width]: of H and of its square
template <typename Acc>
void fill_table(
    const Features& x, const Rows<Acc>& rows, const std::vector<int64_t>& ranges, int activation,
    const Kept<Acc>& kept, Acc* totals) {
  const auto class_mean = kernels<Acc>().class_mean[activation][x.type];
  for_each_tile(ranges, x.N, x.D, [&](int64_t width, const auto& for_each) {
    const Numbers<Acc> scratch(new Acc[width]);
    for_each([&](const Tile& tile) {
      const int64_t end = padded(tile.columns);
      Acc* total = totals + 2 * tile.range * kept.width + tile.first_column;
      Acc* squares = total + kept.width;
      std::fill(total, total + end, Acc(0));
      std::fill(squares, squares + end, Acc(0));
      const auto columns = x.columns(tile.first_column, tile.columns);
      for (int64_t slot = tile.first_slot; slot < tile.last_slot; ++slot) {
        Acc* H = kept.H + slot * kept.width + tile.first_column;
        std::fill(H + end - kPadding, H + end, Acc(0));
        class_mean(rows.of_slot(slot), columns, H, total, squares, scratch.get());
      }
    });
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
        squares[first + j] = static_cast<Acc>(sum);
      }
    }
  });
}

struct Impurities {
  double mean;
  int64_t live;
};

// The impurity term, and what the gradient needs of each feature for it.
template <typename Acc>
Impurities impurity_term(
    const Kept<Acc>& kept, int64_t D, int64_t slots, int64_t impurity, const Acc* squares) {
  std::fill(kept.constant, kept.constant + kept.width, Acc(0));
  std::fill(kept.slope, kept.slope + kept.width, Acc(0));
  const bool collision = impurity == kCollision;
  const bool alone = collision && slots < 2;  // 0, unless the features are not finite
  const double unit = collision && !alone ? std::log(static_cast<double>(slots)) : 1;
  Impurities result{0, 0};
  double product = 1;  // of squares: one logarithm for several, none of which is below 1 / slots
  for (int64_t j = 0; j < D; ++j) {
    if (kept.inverse[j] == 0) {
      result.mean += alone ? 0 : 1;
      continue;
    }
    ++result.live;
    const double square = squares[j] > 1 ? 1 : squares[j];  // by rounding; NaN passes
    if (alone) {
      result.mean += 0 * square;
      continue;
    }
    double factor = 2.0 / static_cast<double>(D);
    if (collision) {
      factor /= square * unit;
      product *= square;
      if (result.live % kSquaresOfALogarithm == 0) {
        result.mean -= std::log(product) / unit;
        product = 1;
      }
    } else {
      result.mean += 1 - square;
    }
    kept.constant[j] = static_cast<Acc>(factor * square);
    kept.slope[j] = static_cast<Acc>(factor * kept.inverse[j]);
  }
  result.mean = (result.mean - std::log(product) / unit) / static_cast<double>(D);
  return result;
}

// pi_c of every slot, and what classes without a slot add to kl.
template <typename Acc>
struct Prior {
  const Acc* given;  // [C] or null: the classes of the batch
  const Rows<Acc>& rows;
  double total = 0;

  Prior(const Acc* given, const Rows<Acc>& rows) : given(given), rows(rows) {
    for (int64_t slot = 0; slot < rows.slots; ++slot) total += rows.sizes[slot];
  }

  double of_slot(int64_t slot) const {
    return given ? given[rows.slot_class[slot]] : rows.sizes[slot] / total;
  }

  double of_absent_classes(int64_t C) const {
    constexpr int64_t kBlock = 64;  // sums of sums: there may be very many classes
    double sum = 0, part = 0;
    for (int64_t c = 0, slot = 0; given && c < C; ++c) {
      if (slot < rows.slots && rows.slot_class[slot] == c) {
        ++slot;
      } else if (given[c] != 0) {
        part += given[c] * std::log(given[c] / kProbabilityFloor);
      }
      if (c % kBlock != kBlock - 1 && c != C - 1) continue;
      sum += part;
      part = 0;
    }
    return sum;
  }
};

// kl, slot_coef and projection
template <typename Acc>
double divergence(
    const Kept<Acc>& kept, const std::vector<int64_t>& ranges, const Prior<Acc>& prior,
    int64_t live) {
  const int64_t width = kept.width, count = static_cast<int64_t>(ranges.size()) - 1;
  const Numbers<Acc> projections(new Acc[count * width]);
  std::vector<double> partial(count);
  const int64_t numbers = 2 * ranges.back() * width;
  at::parallel_for(0, count, grain(numbers, count), [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range) {
      Acc* projection = projections.get() + range * width;
      std::fill(projection, projection + width, Acc(0));
      for (int64_t slot = ranges[range]; slot < ranges[range + 1]; ++slot) {
        const Acc* H = kept.H + slot * width;
        const double q = kernels<Acc>().dot(H, kept.inverse, width) / static_cast<double>(live);
        const double pi = prior.of_slot(slot);
        const bool clamped = q < kProbabilityFloor;
        if (pi != 0) partial[range] += pi * std::log(pi / (clamped ? kProbabilityFloor : q));
        const double A = clamped || pi == 0 ? 0 : -pi / q;
        kept.slot_coef[slot] = static_cast<Acc>(A / static_cast<double>(live));
        kernels<Acc>().project(H, kept.inverse, kept.slot_coef[slot], width, projection);
      }
    }
  });
  kernels<Acc>().sum_rows(projections.get(), count, width, width, kept.projection);
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

template <typename Acc>
auto terms_as(
    const Features& x, at::TensorList row_tensors, int64_t C, const OptionalTensor& prior,
    int activation, int64_t impurity, double gini_weight, double kl_weight) {
  const at::TensorOptions options = x.accumulated();
  const Rows<Acc> rows(row_tensors, x.N, C);
  const int64_t S = is_soft(row_tensors) ? C : std::min(x.N, C);
  at::Tensor memory = at::empty({Kept<Acc>::numbers(S, x.D)}, options);
  prepare(memory);
  const Kept<Acc> kept(memory.mutable_data_ptr<Acc>(), S, x.D);
  double gini = 0, kl = 0;
  if (rows.slots > 0) {
    const std::vector<int64_t> ranges = slot_ranges(rows);
    const int64_t count = static_cast<int64_t>(ranges.size()) - 1;
    const Numbers<Acc> totals(new Acc[2 * count * kept.width]);
    const Numbers<Acc> squares(new Acc[kept.width]);
    fill_table(x, rows, ranges, activation, kept, totals.get());
    normalize(kept, rows.slots, totals.get(), count, squares.get());
    const Impurities impurities = impurity_term(kept, x.D, rows.slots, impurity, squares.get());
    gini = impurities.mean;
    at::Tensor pi;
    if (prior) {
      check_shape(*prior, {C}, "prior");
      pi = prior->contiguous();
    }
    const Prior<Acc> classes(prior ? pi.const_data_ptr<Acc>() : nullptr, rows);
    if (impurities.live > 0) {
      kl = divergence(kept, ranges, classes, impurities.live) + classes.of_absent_classes(C);
      if (kl < 0) kl = 0;  // by rounding
    } else {
      std::fill(kept.projection, kept.projection + kept.width, Acc(0));
      std::fill(kept.slot_coef, kept.slot_coef + rows.slots, Acc(0));
    }
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
