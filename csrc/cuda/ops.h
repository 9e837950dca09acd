// The operators of discfused/backends/contract.py on CUDA tensors.
#pragma once

#include "cuda/kernels.h"
#include "operators.h"

namespace discfused::cuda {

// `rows` of hard labels. `bad` [1], int32, in memory that the device can write, gets the number of
// labels out of range, if there are any; their rows do not count.
std::vector<at::Tensor> rows_flagged(
    const at::Tensor& target, const OptionalTensor& sample_weight, int64_t num_classes,
    int64_t ignore_index, at::ScalarType dtype, at::Tensor bad);

operators::Terms<int64_t> terms;
operators::Gradient gradient;
operators::Histogram<int64_t> histogram;
operators::HistogramGradient histogram_gradient;

Stream current_stream(const at::Tensor& tensor);

// Schema of the operator that the Python side of `rows` calls.
constexpr const char* kRowsFlaggedSchema =
    "cuda_rows_flagged(Tensor target, Tensor? sample_weight, int num_classes, int ignore_index, "
    "ScalarType dtype, Tensor(a!) bad) -> Tensor[]";

template <typename Library>
void implement(Library& library) {
  library.impl("cuda_rows_flagged", rows_flagged);
  library.impl("cuda_terms", terms);
  library.impl("cuda_gradient", gradient);
  library.impl("cuda_histogram", histogram);
  library.impl("cuda_histogram_gradient", histogram_gradient);
}

}  // namespace discfused::cuda
