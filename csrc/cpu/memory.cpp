#include "cpu/memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace discfused::cpu {

namespace {

// Smaller ones come from memory that the C library keeps.
constexpr size_t kSmallest = size_t{1} << 20;

// What waits at most: one block for each of several layers, and no more than a machine can spare.
constexpr size_t kMostBlocks = 4;
constexpr size_t kMostBytes = size_t{512} << 20;

struct Block {
  explicit Block(size_t size) : data(c10::alloc_cpu(size)), bytes(size) {}
  ~Block() { c10::free_cpu(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data;
  size_t bytes;
};

// PyTorch's profiler shall see the memory that tensors use, not what waits for the next one.
void report(void* data, int64_t bytes) {
  if (c10::memoryProfilingEnabled()) {
    c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::DeviceType::CPU));
  }
}

// Asks for huge pages, as NumPy does for its arrays: a block of columns touches a page in nearly
// every row. A hint: whether the system follows it changes no result.
void use_huge_pages([[maybe_unused]] const Block& block) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block.data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + block.bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

class KeptMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest) return c10::GetCPUAllocator()->allocate(bytes);
    std::unique_ptr<Block> block = find(bytes);
    if (!block) {
      block = std::make_unique<Block>(bytes);
      use_huge_pages(*block);
    }
    void* data = block->data;
    report(data, static_cast<int64_t>(block->bytes));
    return {data, block.release(), &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  size_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  // The block that fits best of those that are large enough, but not so large that more than a
  // fifth is wasted. The oldest of equal ones: calls that repeat themselves get back the one they
  // had, and find in the cache what they left there.
  std::unique_ptr<Block> find(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      const size_t size = (*block)->bytes;
      if (size < bytes || size / 5 * 4 > bytes) continue;
      if (best == kept_.end() || size < (*best)->bytes) best = block;
    }
    return best == kept_.end() ? nullptr : take(best);
  }

  void keep(std::unique_ptr<Block> block) {
    if (block->bytes > kMostBytes) return;
    std::vector<std::unique_ptr<Block>> dropped;  // freed after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ += block->bytes;
    kept_.push_back(std::move(block));
    while (kept_.size() > kMostBlocks || bytes_ > kMostBytes) {
      dropped.push_back(take(kept_.begin()));  // the oldest first
    }
  }

  std::unique_ptr<Block> take(std::vector<std::unique_ptr<Block>>::iterator position) {
    std::unique_ptr<Block> block = std::move(*position);
    bytes_ -= block->bytes;
    kept_.erase(position);
    return block;
  }

  static void give_back(void* block);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> kept_;
  size_t bytes_ = 0;  // of all of them
};

// Never destroyed: tensors may be freed after static objects are.
KeptMemory& kept_memory() {
  static KeptMemory* memory = new KeptMemory;
  return *memory;
}

void KeptMemory::give_back(void* context) {
  std::unique_ptr<Block> block(static_cast<Block*>(context));
  report(block->data, -static_cast<int64_t>(block->bytes));
  kept_memory().keep(std::move(block));
}

}  // namespace

at::Tensor empty_kept(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::detail::empty_generic(
      shape, &kept_memory(), c10::DispatchKeySet(c10::DispatchKey::CPU),
      c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

int64_t kept_bytes() { return static_cast<int64_t>(kept_memory().kept_bytes()); }

}  // namespace discfused::cpu
