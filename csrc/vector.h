// Vectors of eight floats. Those of GCC and Clang compile for every machine; which instructions they become is the
// target's matter: a body marked BERTGEN_INLINE is compiled for each target whose function calls it.
#pragma once

#include <cstdint>

#define BERTGEN_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && !defined(BERTGEN_PORTABLE)
#define BERTGEN_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace bertgen {

constexpr int64_t kLanes = 8;
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// The function for this machine of two that do the same.
template <class F>
F* choose(F* anywhere, [[maybe_unused]] F* avx2) {
#if defined(BERTGEN_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
#endif
  return anywhere;
}

// Elements 0, 2, .. of a and b, then 1, 3, ..: within each half where there are vectors of 256 bits, which is what
// their instructions do.
BERTGEN_INLINE void add_pairs(const Vector& a, const Vector& b, Vector& sums) {
#if defined(__clang__)
  sums = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
  sums = __builtin_shuffle(a, b, Bits{0, 2, 8, 10, 4, 6, 12, 14}) +
         __builtin_shuffle(a, b, Bits{1, 3, 9, 11, 5, 7, 13, 15});
#endif
}

// sums[j] -> the sum of its elements, as element j of the result
BERTGEN_INLINE void add_across(Vector (&sums)[kLanes], Vector& result) {
  for (int j = 0; j < 4; ++j) add_pairs(sums[2 * j], sums[2 * j + 1], sums[j]);
  for (int j = 0; j < 2; ++j) add_pairs(sums[2 * j], sums[2 * j + 1], sums[j]);
  // Now sums[i] holds halves of the sums 4 i + j, at j and at 4 + j.
#if defined(__clang__)
  result = __builtin_shufflevector(sums[0], sums[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(sums[0], sums[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  result = __builtin_shuffle(sums[0], sums[1], Bits{0, 1, 2, 3, 8, 9, 10, 11}) +
           __builtin_shuffle(sums[0], sums[1], Bits{4, 5, 6, 7, 12, 13, 14, 15});
#endif
}

}  // namespace bertgen
