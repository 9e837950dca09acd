// labels -> the rows in the order of classes. Runs of kRun rows are sorted by comparing each row
// with all of its run; then runs are merged by finding where each row belongs in the others. No
// work depends on the number of classes, and a batch of one run takes one launch.
//
// A block has one item for each lane: a row, or one of the classes that follow the rows. Its warps
// share what these are compared with.

#include <utility>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace discfused::cuda {

namespace {

// Class C, and weight 0, if the row does not count.
template <typename A>
struct Label {
  int64_t index;
  A weight = 0;
  bool is_wrong;

  __device__ Label(const RowsParams<A>& p, int64_t row) {
    const int64_t y = p.target[row];
    const bool is_class = y >= 0 && y < p.C, is_ignored = y == p.ignore_index;
    if (is_class && !is_ignored) weight = p.sample_weight ? p.sample_weight[row] : A(1);
    index = weight != 0 ? y : p.C;
    is_wrong = !is_class && !is_ignored;
  }
};

// Where an item's class stands among other rows.
template <typename A>
struct Rank {
  int64_t counts[3] = {};  // rows of smaller classes, of none larger, and those before the item
  A mass[1] = {};          // sum of the class's sample weights, if there are any
};

// Where a slot is a place and not a class, C alone has an item.
template <typename A>
__device__ int64_t class_of_item(const RowsParams<A>& p, int64_t item) {
  return p.C > p.out.N ? p.C + (item - p.out.N) : item - p.out.N;
}

// The sum over the warps, to where it belongs; all threads must call it.
template <typename A>
__device__ void store(
    const RowsParams<A>& p, int64_t item, int64_t row, int64_t label, int64_t first,
    Rank<A>& rank) {
  const Rows<A>& out = p.out;
  sum_over_warps(rank.counts);
  if (p.sample_weight) sum_over_warps(rank.mass);
  const int64_t begin = rank.counts[0], end = rank.counts[1], place = first + rank.counts[2];
  if (warp_index() != 0) return;
  if (item < out.N && !p.last) {
    p.merged.label[place] = label;
    p.merged.row[place] = row;
    if (p.sample_weight) p.merged.mass[place] = rank.mass[0];
    return;
  }
  const bool by_place = p.C > out.N, counts = label < p.C;
  const A size = p.sample_weight ? rank.mass[0] : static_cast<A>(end - begin);
  if (item < out.N) {
    out.order[place] = row;
    out.weight[place] = !counts ? A(0) : p.sample_weight ? p.sample_weight[row] : A(1);
    out.row_slot[place] = !counts ? out.S : by_place ? begin : label;
    if (!by_place) return;
    const bool opens = counts && place == begin;
    out.offsets[place] = opens ? place : counts ? end : begin;
    out.slot_class[place] = opens ? label : -1;
    out.size[place] = opens ? size : A(0);
  } else if (counts) {
    out.offsets[label] = begin;
    out.slot_class[label] = begin < end ? label : -1;
    out.size[label] = size;
  } else if (label == p.C) {
    out.offsets[out.S] = begin;
    out.offsets[out.S + 1] = out.N;
  }
}

// Of all rows, or of a run.
template <typename A>
__device__ void store_whole(const RowsParams<A>& p, int64_t run, A whole, int64_t wrong) {
  (p.last ? *p.out.total : p.whole[run]) = whole;
  if (!p.last) p.wrong[run] = wrong;
  if (p.last && wrong) *p.bad = static_cast<int32_t>(wrong);  // else an earlier report is lost
}

// How many of the run's keys are smaller; a warp looks at its share of them.
__device__ int count_smaller(const int64_t* keys, int64_t key) {
  int count = 0;
#pragma unroll 32
  for (int u = 0; u < kRun / kWarps; ++u) count += keys[u * kWarps + warp_index()] < key;
  return count;
}

// Sorts runs.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) compare_kernel(const RowsParams<A> p) {
  __shared__ int64_t keys[kRun];
  __shared__ A weights[kRun];
  const int64_t N = p.out.N, item = block_item(), first = p.last ? 0 : item / kRun * kRun;
  A whole = 0;
  int64_t wrong = 0;
#pragma unroll
  for (int u = 0; u < kRun / kThreads; ++u) {
    const int i = u * kThreads + static_cast<int>(threadIdx.x);
    const bool exists = first + i < N;
    const Label<A> label(p, exists ? first + i : first);
    keys[i] = exists ? label.index * kRun + i : INT64_MAX;  // distinct, in the order of rows
    weights[i] = label.weight;
    whole += exists ? label.weight : A(0);
    wrong += exists && label.is_wrong;
  }
  whole = block_sum(whole);
  wrong = block_sum(wrong);  // has a barrier, behind which all keys are there
  if (warp_index() == 0 && item == first) store_whole(p, first / kRun, whole, wrong);
  const int64_t label = item < N ? keys[item - first] / kRun : class_of_item(p, item);
  const int64_t low = label * kRun, high = low + kRun;
  Rank<A> rank;
  rank.counts[2] = count_smaller(keys, low + (item - first));
  if (p.last) {
    rank.counts[0] = count_smaller(keys, low);
    rank.counts[1] = count_smaller(keys, high);
  }
  for (int i = p.sample_weight ? warp_index() : kRun; i < kRun; i += kWarps) {
    if (low <= keys[i] && keys[i] < high) rank.mass[0] += weights[i];
  }
  store(p, item, item, label, first, rank);
}

// Merges groups of kRunsAtOnce runs.
template <typename A>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) merge_kernel(const RowsParams<A> p) {
  const int64_t N = p.out.N, length = p.runs.length, group = length * kRunsAtOnce;
  const int64_t item = block_item(), first = p.last ? 0 : item / group * group;
  const int64_t end = p.last || first + group > N ? N : first + group;
  const int64_t label = item < N ? p.runs.label[item] : class_of_item(p, item);
  const int64_t row = item < N ? p.runs.row[item] : N;
  Rank<A> rank;
  for (int64_t run = first + warp_index() * length; run < end; run += kWarps * length) {
    const int64_t* labels = p.runs.label + run;
    const int64_t rows = run + length < end ? length : end - run;
    int64_t low = 0, high = 0;  // so many rows of the run have smaller classes, and none larger
    for (int64_t step = length; step > 0; step /= 2) {
      if (low + step <= rows && labels[low + step - 1] < label) low += step;
      if (high + step <= rows && labels[high + step - 1] <= label) high += step;
    }
    const int64_t before = item - run;  // rows of a class come in the order of runs
    rank.counts[0] += low;
    rank.counts[1] += high;
    rank.counts[2] += before < low ? low : before > high ? high : before;
    if (p.sample_weight && low < high) rank.mass[0] += p.runs.mass[run + low];
  }
  if (blockIdx.x == 0 && p.last) {
    const int64_t runs = divide_up(N, kRun);
    const A whole = block_sum_of(p.whole, runs);
    const int64_t wrong = block_sum_of(p.wrong, runs);
    if (threadIdx.x == 0) store_whole(p, 0, whole, wrong);
  }
  store(p, item, row, label, first, rank);
}

}  // namespace

template <typename A>
void launch_rows(RowsParams<A> p, Stream stream) {
  const int64_t N = p.out.N, classes = p.C > N ? 1 : p.C + 1;
  const int64_t rows = divide_up(N, kWarp), items = divide_up(N + classes, kWarp);
  p.last = N <= kRun;
  p.merged.length = kRun;
  launch(compare_kernel<A>, p.last ? items : rows, p, stream);
  while (!p.last) {
    std::swap(p.runs, p.merged);
    p.merged.length = p.runs.length * kRunsAtOnce;
    p.last = N <= p.merged.length;
    launch(merge_kernel<A>, p.last ? items : rows, p, stream);
  }
}

template void launch_rows(RowsParams<float>, Stream);
template void launch_rows(RowsParams<double>, Stream);

}  // namespace discfused::cuda
