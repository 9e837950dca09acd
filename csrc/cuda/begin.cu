// labels and features -> slots, moments

#include "cuda/launch.h"

namespace discfused::cuda {

void begin(
    const LabelsCall* labels, const SlotsCall* slots, const MomentsCall* moments,
    bool double_precision, Stream stream) {
  run_begin(labels, slots, moments, double_precision, Launch{stream});
}

void sort_begin(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream stream) {
  run_sort_begin(labels, slots, sorted, double_precision, Launch{stream});
}

void sort_end(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream stream) {
  run_sort_end(labels, slots, sorted, double_precision, Launch{stream});
}

}  // namespace discfused::cuda
