// What `terms` keeps for `gradient`: one tensor with the table and all that G needs beside it.
#pragma once

#include "cpu/tiles.h"

namespace discfused::cpu {

// H [S, width], then of every column 1 / T, the coefficients of G_cj = 1 / T_j (g1 (constant_j -
// slope_j H_cj) + g2 (slot_coef_c - projection_j)), and slot_coef [S].
template <typename Acc>
struct Kept {
  int64_t width;
  Acc *H, *inverse, *constant, *slope, *projection, *slot_coef;

  static int64_t numbers(int64_t S, int64_t D) { return (S + 4) * padded(D) + S; }

  Kept(Acc* data, int64_t S, int64_t D) : width(padded(D)), H(data) {
    inverse = H + S * width;
    constant = inverse + width;
    slope = constant + width;
    projection = slope + width;
    slot_coef = projection + width;
  }
};

}  // namespace discfused::cpu
