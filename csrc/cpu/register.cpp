// The kernels of the operators for CPU tensors, as the dispatcher finds them.

#include <torch/library.h>

#include "cpu/rows.h"
#include "operators.h"

namespace discfused::cpu {

operators::Terms<int64_t> terms;
operators::Gradient gradient;
operators::Histogram<int64_t> histogram;
operators::HistogramGradient histogram_gradient;

TORCH_LIBRARY_IMPL(discfused, CPU, library) {
  library.impl("cpu_rows", TORCH_FN(rows));
  library.impl("cpu_terms", TORCH_FN(terms));
  library.impl("cpu_gradient", TORCH_FN(gradient));
  library.impl("cpu_histogram", TORCH_FN(histogram));
  library.impl("cpu_histogram_gradient", TORCH_FN(histogram_gradient));
}

}  // namespace discfused::cpu
