// The first look at the features.
#pragma once

#include "cpu/blocks.h"
#include "cpu/row_plan.h"

namespace discfused::cpu {

// mean = sum_i n_i x_ij / total, unless it is null, and magnitude = sum_i n_i |x_ij|, squared for
// the activation that squares: [D] each.
template <typename Acc>
void column_moments(
    const Features& x, const RowPlan<Acc>& plan, int activation, Acc total, Acc* mean,
    Acc* magnitude);

}  // namespace discfused::cpu
