// Page faults are most of what it costs to write to memory that the system has just handed out.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace discfused::cpu {

// Hints for memory of a new tensor, all of which will be written: whether the system follows them
// changes no result.
inline void prepare([[maybe_unused]] const void* fresh, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE) && defined(MADV_POPULATE_WRITE)
  constexpr uintptr_t kPage = 4096, kHugePage = uintptr_t{2} << 20, kSmallest = 256 * 1024;
  if (bytes < kSmallest) return;
  const auto address = [](uintptr_t value) { return reinterpret_cast<void*>(value); };
  const auto data = reinterpret_cast<uintptr_t>(fresh);
  const uintptr_t begin = data / kPage * kPage, end = (data + bytes) / kPage * kPage;
  unsigned char resident = 0;
  // Memory that has been used before has its pages: the last one stands for all.
  if (mincore(address(end - kPage), kPage, &resident) != 0 || resident & 1) return;
  uintptr_t huge_begin = (begin + kHugePage - 1) / kHugePage * kHugePage;
  uintptr_t huge_end = end / kHugePage * kHugePage;
  if (huge_begin >= huge_end) huge_begin = huge_end = end;
  madvise(address(huge_begin), huge_end - huge_begin, MADV_HUGEPAGE);
  // Small pages one by one would cost a fault each.
  madvise(address(begin), huge_begin - begin, MADV_POPULATE_WRITE);
  madvise(address(huge_end), end - huge_end, MADV_POPULATE_WRITE);
  // Of two threads that first write to one huge page at the same time, each would clear one.
  const auto pages = static_cast<int64_t>((huge_end - huge_begin) / kHugePage);
  at::parallel_for(0, pages, 1, [&](int64_t first, int64_t last) {
    madvise(
        address(huge_begin + first * kHugePage), (last - first) * kHugePage, MADV_POPULATE_WRITE);
  });
#endif
}

}  // namespace discfused::cpu
