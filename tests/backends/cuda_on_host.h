// CUDA's words for the host's compiler, so that the tests can run csrc/cuda without a GPU.
//
// The threads of a block are contexts that run one at a time, each until it waits: at a barrier of
// its block, or at an exchange within its warp. Forgotten barriers show, because the order of the
// threads can be turned around, and results must not depend on it.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __shared__ static

namespace on_host {

struct Index {
  unsigned x;
};

struct Barrier {
  int arrived = 0;
  int64_t generation = 0;
};

extern bool backwards;                 // the order of threads and of blocks
extern std::vector<int64_t> launches;  // the blocks of each

void run(int64_t blocks, int threads, const std::function<void()>& thread);
void wait(Barrier& barrier, int members);
Barrier& block_barrier();
Barrier& warp_barrier();
void* exchange();  // [threads], 8 bytes each
int block_threads();

}  // namespace on_host

extern on_host::Index threadIdx, blockIdx;

inline void __syncthreads() { on_host::wait(on_host::block_barrier(), on_host::block_threads()); }

template <typename A>
A __shfl_xor_sync(unsigned, A value, int mask) {
  static_assert(sizeof(A) == 4 || sizeof(A) == 8);
  A* values = static_cast<A*>(on_host::exchange());
  const unsigned own = threadIdx.x;
  values[own] = value;
  on_host::wait(on_host::warp_barrier(), 32);
  const A other = values[own ^ static_cast<unsigned>(mask)];
  on_host::wait(on_host::warp_barrier(), 32);
  return other;
}
