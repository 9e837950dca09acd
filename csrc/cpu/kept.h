// What `terms` keeps for `gradient`: one tensor with the table and all that G needs beside it.
#pragma once

#include "cpu/tiles.h"

namespace discfused::cpu {

// H [S, width], then of every column 1 / T, the coefficients of G_cj = 1 / T_j (g1 (constant_j -
// factor slope_j H_cj) + g2 (slot_coef_c - projection_j)), slot_coef [S], and factor. Gini's slope
// is 1 / T, and not stored again: a vector less in the first-level cache. Collision's factor is 1,
// which is noted as 0.
template <typename Acc>
struct Kept {
  int64_t width;
  Acc *H, *inverse, *constant, *slope, *projection, *slot_coef, *factor;

  static int64_t numbers(int64_t S, int64_t D) { return (S + 4) * padded(D) + S + 1; }

  Kept(Acc* data, int64_t S, int64_t D) : width(padded(D)), H(data) {
    inverse = H + S * width;
    constant = inverse + width;
    slope = constant + width;
    projection = slope + width;
    slot_coef = projection + width;
    factor = slot_coef + S;
  }
};

}  // namespace discfused::cpu
