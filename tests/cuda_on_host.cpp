// The CUDA backend without a GPU: the same tensors, the same kernels, compiled by the host's
// compiler. All threads of a block run one after another through one phase after another (see
// cuda/block.h); shared memory and registers hold garbage at first.

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "cuda/bindings.h"
#include "cuda/stages_impl.h"

namespace discfused::cuda {

namespace {

// In which order threads and blocks run, which must not matter; and how many launches there were.
bool backwards = false;
int64_t launches = 0;

template <class F>
void in_order(int64_t count, const F& f) {
  for (int64_t i = 0; i < count; ++i) f(backwards ? count - 1 - i : i);
}

class HostBlock {
 public:
  HostBlock(int64_t index, int threads, void* shared)
      : index_(index), threads_(threads), shared_(shared) {}

  int64_t index() const { return index_; }

  template <typename S>
  S& shared() {
    return *static_cast<S*>(shared_);
  }

  template <typename R>
  std::vector<R> registers() {
    std::vector<R> all(threads_);
    std::memset(static_cast<void*>(all.data()), 0xff, threads_ * sizeof(R));
    return all;
  }

  template <class Phase>
  void each(const Phase& phase) {
    in_order(threads_, [&](int64_t thread) { phase(static_cast<int>(thread)); });
  }

  // Within a warp all threads fill before one uses; warps do not wait for each other.
  template <int kCount, typename A, class Fill, class Use>
  void sum_lanes(const Fill& fill, const Use& use) {
    in_order(threads_ / kWarp, [&](int64_t warp) {
      A values[kWarp][kCount];
      const int first = static_cast<int>(warp) * kWarp;
      in_order(kWarp, [&](int64_t lane) { fill(first + static_cast<int>(lane), values[lane]); });
      for (int step = kWarp / 2; step > 0; step /= 2) {
        A sums[kWarp][kCount];
        for (int lane = 0; lane < kWarp; ++lane) {
          for (int i = 0; i < kCount; ++i) sums[lane][i] = values[lane][i] + values[lane ^ step][i];
        }
        std::memcpy(values, sums, sizeof(values));
      }
      in_order(kWarp, [&](int64_t lane) { use(first + static_cast<int>(lane), values[lane]); });
    });
  }

  void add(int64_t* sum, int64_t value) { *sum += value; }

 private:
  int64_t index_;
  int threads_;
  void* shared_;
};

struct OnHost {
  template <class Kernel>
  void launch(int64_t blocks, const typename Kernel::Arguments& arguments) const {
    ++launches;
    std::vector<unsigned char> shared(sizeof(typename Kernel::Shared) + 16);
    void* place = shared.data();
    size_t space = shared.size();
    std::align(16, sizeof(typename Kernel::Shared), place, space);
    in_order(blocks, [&](int64_t index) {
      std::fill(shared.begin(), shared.end(), 0xff);
      HostBlock block(index, Kernel::kThreads, place);
      Kernel::run(arguments, block);
    });
  }
};

}  // namespace

Stream current_stream(int) { return nullptr; }

void begin(
    const LabelsCall* labels, const SlotsCall* slots, const MomentsCall* moments,
    bool double_precision, Stream) {
  run_begin(labels, slots, moments, double_precision, OnHost());
}
void sort_begin(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream) {
  run_sort_begin(labels, slots, sorted, double_precision, OnHost());
}
void sort_end(
    const LabelsCall& labels, const SlotsCall& slots, const SortedCall& sorted,
    bool double_precision, Stream) {
  run_sort_end(labels, slots, sorted, double_precision, OnHost());
}
void histogram(const HistogramCall& call, Stream) { run_histogram(call, OnHost()); }
void terms(const TermsCall& call, Stream) { run_terms(call, OnHost()); }
void gradient(const GradientCall& call, Stream) { run_gradient(call, OnHost()); }

}  // namespace discfused::cuda

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace discfused::cuda;
  bind(module);
  module.def("run_backwards", [](bool value) { backwards = value; });
  module.def("launches", [] { return std::exchange(launches, 0); });
}
