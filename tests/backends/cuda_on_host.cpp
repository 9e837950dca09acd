// Runs the kernels of csrc/cuda on the host.

#include "cuda_on_host.h"

#include <torch/library.h>

#include <memory>

#include "cuda/gradient.cu"
#include "cuda/rows.cu"
#include "cuda/table.cu"
#include "cuda/tensors.h"
#include "cuda/terms.cu"

on_host::Index threadIdx{}, blockIdx{};

namespace on_host {

bool backwards = false;
std::vector<int64_t> launches;

namespace {

constexpr size_t kStack = 256 * 1024;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

ucontext_t scheduler;
std::vector<Thread> threads;
std::vector<Barrier> warps;
std::vector<double> values;
Barrier block;
const std::function<void()>* body;
int running;  // threads of this block

void enter() {
  (*body)();
  threads[threadIdx.x].done = true;
}

}  // namespace

void wait(Barrier& barrier, int members) {
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  const unsigned own = threadIdx.x;
  while (barrier.generation == generation) swapcontext(&threads[own].context, &scheduler);
}

Barrier& block_barrier() { return block; }
Barrier& warp_barrier() { return warps[threadIdx.x / 32]; }
void* exchange() { return values.data(); }
int block_threads() { return running; }

void run(int64_t blocks, int count, const std::function<void()>& thread) {
  launches.push_back(blocks);
  if (static_cast<int>(threads.size()) < count) threads = std::vector<Thread>(count);
  body = &thread;
  running = count;
  for (int64_t b = 0; b < blocks; ++b) {
    blockIdx.x = static_cast<unsigned>(backwards ? blocks - 1 - b : b);
    block = Barrier();
    warps.assign(count / 32, Barrier());
    values.assign(count, NAN);
    for (int t = 0; t < count; ++t) {
      Thread& one = threads[t];
      one.done = false;
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.get();
      one.context.uc_stack.ss_size = kStack;
      one.context.uc_link = &scheduler;
      makecontext(&one.context, enter, 0);
    }
    for (int left = count; left > 0;) {
      for (int i = 0; i < count; ++i) {
        const int t = backwards ? count - 1 - i : i;
        if (threads[t].done) continue;
        threadIdx.x = static_cast<unsigned>(t);
        swapcontext(&scheduler, &threads[t].context);
        left -= threads[t].done;
      }
    }
  }
}

}  // namespace on_host

namespace discfused::cuda {

Stream current_stream(const at::Tensor&) { return nullptr; }

}  // namespace discfused::cuda

TORCH_LIBRARY(cuda_on_host, library) {
  library.def("run_backwards(bool value) -> ()", [](bool value) { on_host::backwards = value; });
  library.def("launches() -> int[]", [] { return on_host::launches; });
}
