// How a kernel is written: as phases between barriers, each a function of the thread alone.
//
//   template <class Block> static void run(const Arguments&, Block& block) {
//     auto& shared = block.template shared<Shared>();
//     auto mine = block.template registers<Registers>();
//     block.each([&](int thread) { ... mine[thread] ... shared ... });  // and a barrier
//   }
//
// On a GPU a phase is straight-line code of every thread. The tests compile the same kernels with
// the host's compiler and another Block, which runs all threads of a block, one after another,
// through one phase after another. So a phase must not depend on what other threads do in it, and
// what decides how many phases there are must be the same for all threads.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define DISCFUSED_DEVICE __device__ __forceinline__
#else
#define DISCFUSED_DEVICE inline
#endif

namespace discfused::cuda {

constexpr int kWarp = 32;  // of every NVIDIA GPU

#ifdef __CUDACC__

template <typename R>
struct OwnRegisters {
  R own;
  __device__ __forceinline__ R& operator[](int) { return own; }
};

class DeviceBlock {
 public:
  __device__ explicit DeviceBlock(void* shared) : shared_(shared) {}

  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }

  template <typename S>
  __device__ __forceinline__ S& shared() {
    return *static_cast<S*>(shared_);
  }

  template <typename R>
  __device__ __forceinline__ OwnRegisters<R> registers() {
    return {};
  }

  template <class Phase>
  __device__ __forceinline__ void each(const Phase& phase) {
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // fill(thread, values), then use(thread, sums) with the sums over the threads of a warp. No
  // barrier.
  template <int kCount, typename A, class Fill, class Use>
  __device__ __forceinline__ void sum_lanes(const Fill& fill, const Use& use) {
    A values[kCount];
    fill(static_cast<int>(threadIdx.x), values);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
    }
    use(static_cast<int>(threadIdx.x), values);
  }

  // Of integers only, whose sum does not depend on the order.
  __device__ __forceinline__ void add(int64_t* sum, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
  }

 private:
  void* shared_;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 512 / Kernel::kThreads)
    entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  __shared__ alignas(16) unsigned char shared[sizeof(typename Kernel::Shared)];
  DeviceBlock block(shared);
  Kernel::run(arguments, block);
}

#endif

}  // namespace discfused::cuda
