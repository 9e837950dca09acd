// From the table to the terms, and to what backward needs of them.
//
// 32 lanes stand for 32 columns; the warps of a block share the slots of as many columns as a block
// has (Arguments::slot_warps warps for each 32 columns). Both stages run in one launch where one
// block has all columns.
#pragma once

#include "cuda/columns.h"

namespace discfused::cuda {

template <typename A>
struct TermsArguments {
  const A* table;      // [S, D]
  const A* slope;      // [S, D] or null
  const A* magnitude;  // [D]
  const A* prior;      // [S]
  const A* absent;     // [] or null
  A* feature_coef;     // [6, D]
  A* slot_coef;        // [S]
  A* penalty;
  A* gini;
  A* kl;
  // [column blocks, S + 2]: over 32 features, the sum of P for every slot, of their impurities, and
  // the number of live ones
  A* sums;
  int64_t S, D;
  int slot_warps;  // a power of 2, at most kTermsWarps
  bool reverse;
  A eps, gini_weight, kl_weight;
};

constexpr int kTermsThreads = 512;
constexpr int kTermsWarps = kTermsThreads / kWarp;

// Where a thread stands: column `column` of the 32 columns `column_block`, first slot `first`.
template <typename A>
struct TermsPlace {
  int lane, warp, first, step;
  int64_t column_block, column;

  DISCFUSED_DEVICE TermsPlace(const TermsArguments<A>& a, int64_t block, int thread)
      : lane(thread % kWarp),
        warp(thread / kWarp),
        first(warp % a.slot_warps),
        step(a.slot_warps),
        column_block(block * (kTermsWarps / a.slot_warps) + warp / a.slot_warps),
        column(column_block * kWarp + lane) {}
};

template <typename A>
struct WarpSums {
  A value[kTermsWarps][kWarp];

  // The sum over the warps that share the thread's columns.
  DISCFUSED_DEVICE A sum(const TermsPlace<A>& at) const {
    A sum = 0;
    const int first = at.warp - at.first;
    for (int warp = first; warp < first + at.step; ++warp) sum += value[warp][at.lane];
    return sum;
  }
};

// 1 / T and sum of P^2 of every feature, and `sums`
template <typename A>
struct FeatureTerms {
  static constexpr int kThreads = kTermsThreads;
  static constexpr int kUnroll = 8;
  using Arguments = TermsArguments<A>;
  struct Shared {
    WarpSums<A> mass, squares;
  };
  struct Registers {
    A inverse, squares;
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    auto mine = block.template registers<Registers>();
    const int64_t width = a.S + 2;
    const auto place = [&](int thread) { return TermsPlace<A>(a, block.index(), thread); };

    block.each([&](int thread) {
      const auto at = place(thread);
      A mass = 0;
      if (at.column < a.D) {
#pragma unroll 8
        for (int64_t slot = at.first; slot < a.S; slot += at.step) {
          mass += a.table[slot * a.D + at.column];
        }
      }
      s.mass.value[at.warp][at.lane] = mass;
    });
    block.each([&](int thread) {
      const auto at = place(thread);
      const A scale = at.column < a.D ? a.magnitude[at.column] : A(0);
      mine[thread].inverse = live_reciprocal(total_mass(s.mass.sum(at), scale), scale, a.eps);
      mine[thread].squares = A(0);
    });
    for (int64_t start = 0; start < a.S; start += kUnroll * a.slot_warps) {
      block.template sum_lanes<kUnroll, A>(
          [&](int thread, A(&values)[kUnroll]) {
            const auto at = place(thread);
            auto& own = mine[thread];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
              const int64_t slot = start + at.first + u * at.step;
              const bool inside = slot < a.S && at.column < a.D;
              values[u] = inside ? a.table[slot * a.D + at.column] : A(0);
            }
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
              // A dead feature may hold what would make it NaN.
              values[u] = own.inverse == A(0) ? A(0) : values[u] * own.inverse;
              own.squares += values[u] * values[u];
            }
          },
          [&](int thread, const A(&values)[kUnroll]) {
            const auto at = place(thread);
            if (at.column_block * kWarp >= a.D) return;
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
              const int64_t slot = start + at.first + u * at.step;
              if (at.lane == u && slot < a.S) a.sums[at.column_block * width + slot] = values[u];
            }
          });
    }
    block.each([&](int thread) {
      const auto at = place(thread);
      s.squares.value[at.warp][at.lane] = mine[thread].squares;
    });
    block.template sum_lanes<2, A>(
        [&](int thread, A(&values)[2]) {
          const auto at = place(thread);
          values[0] = values[1] = A(0);
          if (at.first != 0 || at.column >= a.D) return;
          const A inverse = mine[thread].inverse, squares = s.squares.sum(at);
          a.feature_coef[a.D + at.column] = inverse;
          a.feature_coef[2 * a.D + at.column] = squares;
          if (inverse == A(0)) return;
          values[0] = gini_impurity(squares);
          values[1] = A(1);
        },
        [&](int thread, const A(&values)[2]) {
          const auto at = place(thread);
          if (at.first != 0 || at.lane >= 2 || at.column_block * kWarp >= a.D) return;
          a.sums[at.column_block * width + a.S + at.lane] = at.lane == 0 ? values[0] : values[1];
        });
  }
};

// A of every slot and the scalars from `sums`, and of every feature 1 / (L T), sum of A P, and what
// the gradient's sum over the rows is made of. Every block makes all A for itself, instead of a
// launch for them.
template <typename A>
struct ClassTerms {
  static constexpr int kThreads = kTermsThreads;
  using Arguments = TermsArguments<A>;
  enum { kProjection, kSlope, kSlopeShare, kSlopeProjection, kSums };
  struct Shared {
    A reduced[kThreads];  // for sums over all threads
    A slot_coef[kThreads];
    WarpSums<A> sum;
  };
  struct Registers {
    A sum[kSums];
    A divergence, impurity, live, total;
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    Shared& s = block.template shared<Shared>();
    auto mine = block.template registers<Registers>();
    const int64_t parts = (a.D + kWarp - 1) / kWarp, width = a.S + 2;
    const auto place = [&](int thread) { return TermsPlace<A>(a, block.index(), thread); };

    block.each([&](int thread) {
      auto& own = mine[thread];
      for (int i = 0; i < kSums; ++i) own.sum[i] = A(0);
      own.divergence = A(0);
      own.live = own.impurity = A(0);
      for (int64_t part = thread; part < parts; part += kThreads) {
        own.impurity += a.sums[part * width + a.S];
        own.live += a.sums[part * width + a.S + 1];
      }
    });
    sum_threads(block, s, mine, &Registers::impurity);
    sum_threads(block, s, mine, &Registers::live);

    for (int64_t start = 0; start < a.S; start += kThreads) {
      block.each([&](int thread) {
        const int64_t slot = start + thread;
        if (slot >= a.S) return;
        A q = 0;
#pragma unroll 8
        for (int64_t part = 0; part < parts; ++part) q += a.sums[part * width + slot];
        q /= nonzero(mine[thread].live);
        const A prior = a.prior[slot];
        mine[thread].divergence +=
            a.reverse ? divergence_term(q, prior) : divergence_term(prior, q);
        const A coef = divergence_slope(prior, q, a.reverse);
        s.slot_coef[thread] = coef;
        if (block.index() == 0) a.slot_coef[slot] = coef;
      });
      const int64_t rest = a.S - start;
      const int slots = static_cast<int>(rest < kThreads ? rest : kThreads);
      block.each([&](int thread) {
        const auto at = place(thread);
        if (at.column >= a.D) return;
        const int64_t first = start * a.D + at.column;
        const A inverse = a.feature_coef[a.D + at.column];
        auto& own = mine[thread];
#pragma unroll 8
        for (int i = at.first; i < slots; i += at.step) {
          const A share = inverse * a.table[first + i * a.D], coef = s.slot_coef[i];
          own.sum[kProjection] += coef * share;
          if (!a.slope) continue;
          const A slope = a.slope[first + i * a.D];
          own.sum[kSlope] += slope;
          own.sum[kSlopeShare] += slope * share;  // a mass times a slope could overflow
          own.sum[kSlopeProjection] += coef * slope;
        }
      });
    }
    for (int i = 0; i < kSums; ++i) {
      block.each([&](int thread) {
        const auto at = place(thread);
        s.sum.value[at.warp][at.lane] = pick(mine[thread], i);
      });
      block.each([&](int thread) { put(mine[thread], i, s.sum.sum(place(thread))); });
    }
    sum_threads(block, s, mine, &Registers::divergence);
    block.each([&](int thread) { finish(a, block.index(), thread, place(thread), mine[thread]); });
  }

  // Registers are no array to be indexed by a variable.
  static DISCFUSED_DEVICE A pick(const Registers& own, int which) {
    A value = own.sum[0];
#pragma unroll
    for (int i = 1; i < kSums; ++i) value = i == which ? own.sum[i] : value;
    return value;
  }
  static DISCFUSED_DEVICE void put(Registers& own, int which, A value) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) own.sum[i] = i == which ? value : own.sum[i];
  }

  // The sum of what all threads have, for all threads.
  template <class Block, class Mine>
  static DISCFUSED_DEVICE void sum_threads(
      Block& block, Shared& s, Mine& mine, A Registers::* member) {
    block.each([&](int thread) { s.reduced[thread] = mine[thread].*member; });
    block.template sum_lanes<1, A>(
        [&](int thread, A(&values)[1]) {
          values[0] = A(0);
          for (int i = thread % kWarp; i < kThreads; i += kWarp) values[0] += s.reduced[i];
        },
        [&](int thread, const A(&values)[1]) { mine[thread].*member = values[0]; });
    block.each([](int) {});  // before `reduced` is used again
  }

  static DISCFUSED_DEVICE void finish(
      const Arguments& a, int64_t block, int thread, const TermsPlace<A>& at,
      const Registers& own) {
    const A live = nonzero(own.live);
    if (at.first == 0 && at.column < a.D) {
      const A inverse = a.feature_coef[a.D + at.column];
      const A squares = a.feature_coef[2 * a.D + at.column];
      const bool dead = inverse == A(0);
      const A projection = dead ? A(0) : own.sum[kProjection];
      a.feature_coef[at.column] = inverse / live;
      a.feature_coef[3 * a.D + at.column] = projection;
      if (a.slope) {
        a.feature_coef[4 * a.D + at.column] =
            dead ? A(0) : squares * own.sum[kSlope] - own.sum[kSlopeShare];
        a.feature_coef[5 * a.D + at.column] =
            dead ? A(0) : own.sum[kSlopeProjection] - projection * own.sum[kSlope];
      }
    }
    if (block != 0 || thread != 0) return;
    const A gini = own.impurity / live;
    A kl = own.divergence;
    if (a.absent) kl += *a.absent;
    kl = own.live == A(0) ? A(0) : nonnegative(kl);
    *a.gini = gini;
    *a.kl = kl;
    *a.penalty = a.gini_weight * gini + a.kl_weight * kl;
  }
};

// Both stages in one block.
template <typename A>
struct AllTerms {
  static constexpr int kThreads = kTermsThreads;
  using Arguments = TermsArguments<A>;
  union Shared {
    typename FeatureTerms<A>::Shared features;
    typename ClassTerms<A>::Shared classes;
  };

  template <class Block>
  static DISCFUSED_DEVICE void run(const Arguments& a, Block& block) {
    FeatureTerms<A>::run(a, block);
    block.each([](int) {});  // `sums` are complete
    ClassTerms<A>::run(a, block);
  }
};

}  // namespace discfused::cuda
