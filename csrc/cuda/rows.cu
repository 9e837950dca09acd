// labels -> the rows in the order of classes. Between the first two kernels labels are sorted.

#include "cuda/device.h"
#include "cuda/launch.h"

namespace discfused::cuda {

namespace {

template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) labels_kernel(const LabelsParams<A> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.N) return;
  const int64_t y = p.target[row];
  int64_t label = y >= 0 && y < p.C ? y : p.C + 1;
  if (y == p.ignore_index) label = p.C;
  if (label < p.C && p.sample_weight && p.sample_weight[row] == 0) label = p.C;
  p.label[row] = label;
}

// The first place whose label is at least `label`.
template <typename A>
__device__ int64_t first_place(const SegmentsParams<A>& p, int64_t label) {
  int64_t low = 0, high = p.N;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.label[middle] < label) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename A>
__device__ int64_t slot_of_place(const SegmentsParams<A>& p, int64_t place) {
  return place == 0 ? 0 : p.rank[place - 1];
}

// A thread has a place in the order of rows, and the slot of that number.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    segments_kernel(const SegmentsParams<A> p) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k < p.N) {
    const int64_t label = p.label[k];
    const bool counts = label < p.C, opens = k == 0 || p.label[k - 1] != label;
    const int64_t slot = counts ? slot_of_place(p, k) : p.S;
    p.row_slot[k] = slot;
    p.weight[k] = !counts ? A(0) : p.sample_weight ? p.sample_weight[p.order[k]] : A(1);
    if (opens && counts) {
      p.offsets[slot] = k;
      p.slot_class[slot] = label;
    }
    if (opens && label > p.C) *p.bad = static_cast<int32_t>(p.N - k);
  }
  if (k <= p.S) {
    const int64_t counting = first_place(p, p.C);
    const int64_t slots = counting == 0 ? 0 : slot_of_place(p, counting - 1) + 1;
    if (k >= slots) {
      p.offsets[k] = counting;
      if (k < p.S) p.slot_class[k] = -1;
    }
    if (k == p.S) p.offsets[k + 1] = p.N;
  }
}

// A warp has a slot.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) sizes_kernel(const SizesParams<A> p) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (slot >= p.S) return;
  A sum = 0;
  const int64_t end = p.offsets[slot + 1];
  for (int64_t k = p.offsets[slot] + lane_index(); k < end; k += kWarp) sum += p.weight[k];
  sum = warp_sum(sum);
  if (lane_index() == 0) p.size[slot] = sum;
}

}  // namespace

template <typename A>
void launch_labels(const LabelsParams<A>& p, Stream stream) {
  launch(labels_kernel<A>, divide_up(p.N, kThreads), p, stream);
}

template <typename A>
void launch_segments(const SegmentsParams<A>& p, Stream stream) {
  launch(segments_kernel<A>, divide_up(p.N > p.S ? p.N : p.S + 1, kThreads), p, stream);
}

template <typename A>
void launch_sizes(const SizesParams<A>& p, Stream stream) {
  launch(sizes_kernel<A>, divide_up(p.S, kWarps), p, stream);
}

#define DISCFUSED_INSTANTIATE(A)                                   \
  template void launch_labels(const LabelsParams<A>&, Stream);     \
  template void launch_segments(const SegmentsParams<A>&, Stream); \
  template void launch_sizes(const SizesParams<A>&, Stream);
DISCFUSED_INSTANTIATE(float)
DISCFUSED_INSTANTIATE(double)
#undef DISCFUSED_INSTANTIATE

}  // namespace discfused::cuda
