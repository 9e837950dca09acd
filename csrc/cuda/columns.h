// Which columns a thread owns in the kernels that walk over rows, and how it reads them.
//
// A block has 256 threads: 8 lanes beside each other, of 16 bytes each, cover 128 bytes of a row;
// 32 such groups look at 32 rows at a time. Features are added up in A: double for double features,
// else float. Offsets have 64 bits.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "cuda/block.h"
#include "disc_math.h"

namespace discfused::cuda {

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kRowThreads = 256;
constexpr int kLanes = 8;
constexpr int kGroups = kRowThreads / kLanes;
template <typename T>
constexpr int kPack = 16 / sizeof(T);  // columns of a thread
template <typename T>
constexpr int kColumns = kLanes * kPack<T>;  // columns of a block

// How many rows a thread asks for before it uses the first.
constexpr int kInFlight = 4;

template <typename T>
struct alignas(16) Pack {
  T value[kPack<T>];
};

// In one instruction: of an assignment nvcc makes several.
template <typename T>
DISCFUSED_DEVICE void store(T* to, const Pack<T>& pack) {
#ifdef __CUDACC__
  uint4 bits;
  memcpy(&bits, &pack, sizeof(bits));
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
               : "memory");
#else
  *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
}

template <typename T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;
};

// kVector: rows are contiguous and every thread's columns start at a multiple of 16 bytes, in x and
// in all tensors of D columns. Otherwise columns are read one by one, neighbours by neighbours.
template <typename T, bool kVector>
class OwnColumns {
 public:
  using A = Accumulator<T>;
  static constexpr int kCount = kPack<T>;

  DISCFUSED_DEVICE OwnColumns(int64_t column_block, int thread, int64_t D)
      : first_(column_block * kColumns<T>), lane_(thread % kLanes), D_(D) {}

  // Within the block, and whether it exists.
  DISCFUSED_DEVICE int local(int k) const {
    return kVector ? lane_ * kCount + k : k * kLanes + lane_;
  }
  DISCFUSED_DEVICE bool inside(int k) const { return first_ + local(k) < D_; }

  DISCFUSED_DEVICE Pack<T> read(const Matrix<T>& x, int64_t row) const {
    Pack<T> pack;
    if constexpr (kVector) {
      if (inside(0)) return *reinterpret_cast<const Pack<T>*>(at(x.data + row * x.row_stride));
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      pack.value[k] = T(0);
      if constexpr (!kVector) {
        const int64_t column = first_ + local(k);
        if (column < D_) pack.value[k] = x.data[row * x.row_stride + column * x.column_stride];
      }
    }
    return pack;
  }

  // A line of D accumulated numbers.
  DISCFUSED_DEVICE void read_line(const A* line, A (&values)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = A(0);
    if constexpr (kVector) {
      if (!inside(0)) return;
      constexpr int kEach = kPack<A>;
#pragma unroll
      for (int k = 0; k < kCount; k += kEach) {
        const Pack<A> pack = *reinterpret_cast<const Pack<A>*>(at(line) + k);
#pragma unroll
        for (int i = 0; i < kEach; ++i) values[k + i] = pack.value[i];
      }
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (inside(k)) values[k] = line[first_ + local(k)];
      }
    }
  }

  // To a line of D numbers of type U, T or A.
  template <typename U>
  DISCFUSED_DEVICE void write_line(U* line, const A (&values)[kCount]) const {
    if constexpr (kVector) {
      if (!inside(0)) return;
      constexpr int kEach = kPack<U>;
#pragma unroll
      for (int k = 0; k < kCount; k += kEach) {
        Pack<U> pack;
#pragma unroll
        for (int i = 0; i < kEach; ++i) pack.value[i] = static_cast<U>(values[k + i]);
        store(at(line) + k, pack);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (inside(k)) line[first_ + local(k)] = static_cast<U>(values[k]);
      }
    }
  }

 private:
  template <typename P>
  DISCFUSED_DEVICE P* at(P* line) const {
    return line + first_ + lane_ * kCount;
  }

  int64_t first_;
  int lane_;
  int64_t D_;
};

// f(std::integral_constant<Activation, A>), the same A for all threads
template <class F>
DISCFUSED_DEVICE void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kAbs:
      return f(std::integral_constant<Activation, Activation::kAbs>());
    case Activation::kSquare:
      return f(std::integral_constant<Activation, Activation::kSquare>());
    case Activation::kSoftplus:
      return f(std::integral_constant<Activation, Activation::kSoftplus>());
    case Activation::kSigmoid:
      return f(std::integral_constant<Activation, Activation::kSigmoid>());
  }
}

// A total to divide by. When it is 0, nothing counts and what is divided is 0 as well.
template <typename A>
DISCFUSED_DEVICE A nonzero(A total) {
  return total == A(0) ? A(1) : total;
}

// The columns of a block, summed over the parts of the rows that an earlier launch saw: sums
// [parts, D] -> sum[kColumns]. Two phases: partial() by all threads, then total() by one a column.
template <typename T>
struct PartSums {
  using A = Accumulator<T>;
  A partial_sum[kRowThreads];

  DISCFUSED_DEVICE void partial(
      int thread, const A* sums, int64_t parts, int64_t stride, int64_t column_block, int64_t D) {
    const int64_t column = column_block * kColumns<T> + thread % kColumns<T>;
    A sum = 0;
    if (column < D) {
      for (int64_t part = thread / kColumns<T>; part < parts; part += kRowThreads / kColumns<T>) {
        sum += sums[part * stride + column];
      }
    }
    partial_sum[thread] = sum;
  }

  DISCFUSED_DEVICE A total(int column) const {
    A sum = 0;
#pragma unroll
    for (int i = column; i < kRowThreads; i += kColumns<T>) sum += partial_sum[i];
    return sum;
  }
};

}  // namespace discfused::cuda
