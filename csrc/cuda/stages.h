// What the rest of the library knows of the kernels: the four stages as plain numbers and pointers,
// for tensors on one device. stages_impl.h chooses kernels and grids, the .cu files compile them.
#pragma once

#include <cstdint>

namespace discfused::cuda {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Dtype : int { kHalf, kBFloat16, kFloat, kDouble };

// Pointers are to numbers of the dtype (x, dx), of its accumulator (void* otherwise), or as said.

struct LabelsCall {
  const int64_t* target;      // [N]
  const void* weight;         // [C] or null
  const void* sample_weight;  // [N] or null
  int64_t N, C, S, ignore_index;
};

struct SlotsCall {
  int32_t* slot;        // [N]
  void* row_weight;     // [N]
  int32_t* order;       // [N]
  int32_t* span;        // [2, S]
  void* share;          // [S]
  int64_t* slot_class;  // [S]
  void* total;          // []
  int32_t* bad;         // [1], on the host
};

struct FeaturesCall {
  Dtype dtype;
  bool vector;  // see columns.h
  const void* x;
  int64_t N, D, row_stride, column_stride;
  int activation;
};

struct MomentsCall {
  FeaturesCall features;
  const void* row_weight;  // or null: from the labels
  void* sums;              // [moment_parts, 2, D]
};

struct SortedCall {
  int32_t* key;  // [N]
  const int32_t* sorted_key;
  const int64_t* sorted_row;
  int64_t* wrong;
};

struct HistogramCall {
  FeaturesCall features;
  const void* row_weight;
  const void* total;
  const int32_t* order;
  const int32_t* span;
  const void* sums;
  const void* given_mean;
  void* mean;
  void* magnitude;
  void* table;  // [S, D]
  void* slope;  // [S, D] or null
  void* parts;  // [table_parts, 1 or 2, S, D] if these are more than one
  int64_t S;
  bool center;
};

struct TermsCall {
  bool double_precision;
  const void* table;
  const void* slope;
  const void* magnitude;
  const void* prior;
  const void* absent;
  void* feature_coef;
  void* slot_coef;
  void* penalty;
  void* gini;
  void* kl;
  void* sums;  // [terms_parts, S + 2]
  int64_t S, D;
  bool reverse;
  double eps, gini_weight, kl_weight;
};

struct GradientCall {
  FeaturesCall features;
  const int32_t* slot;
  const void* row_weight;
  const void* total;
  const void* mean;
  const void* table;
  const void* feature_coef;
  const void* slot_coef;
  const void* grad_gini;
  const void* grad_kl;
  double gini_weight, kl_weight;
  void* sums;  // [moment_parts, D], or null where the terms told the sum
  void* dx;
};

// How large the scratch is: into how many parts a stage splits its rows. From shapes alone, so that
// sums have the same order on every GPU.
int64_t moment_parts(Dtype dtype, int64_t N, int64_t D);
int64_t table_parts(Dtype dtype, int64_t N, int64_t D, int64_t S);
int64_t terms_parts(int64_t D);
// Beyond this, rows are sorted instead of counted.
bool counts_rows(int64_t N, int64_t S, int64_t C);

using Stream = void*;  // cudaStream_t
Stream current_stream(int device);

// One launch; either may be null.
void begin(
    const LabelsCall* labels, const SlotsCall* slots, const MomentsCall* moments,
    bool double_precision, Stream stream);
// Before and after PyTorch sorts the keys; `span` and `wrong` must be 0, `total` known in between.
void sort_begin(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream stream);
void sort_end(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream stream);
void histogram(const HistogramCall& call, Stream stream);
void terms(const TermsCall& call, Stream stream);
void gradient(const GradientCall& call, Stream stream);

}  // namespace discfused::cuda
