// Which instructions the kernels use: the best of this machine, or fewer where a caller asks for them. The same source
// is compiled for each: a body marked BERTGEN_INLINE becomes part of each function that calls it, for that one's target.
#pragma once

#include <atomic>

#define BERTGEN_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && !defined(BERTGEN_PORTABLE)
#define BERTGEN_X86
#define BERTGEN_AVX2 __attribute__((target("avx2,fma")))
#define BERTGEN_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#endif

namespace bertgen {

enum Instructions : int { kAnywhere, kAvx2, kAvx512 };  // each with all of those before it

inline Instructions supported() {
#if defined(BERTGEN_X86)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kAnywhere;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  return wide ? kAvx512 : kAvx2;
#else
  return kAnywhere;
#endif
}

inline std::atomic<Instructions> instructions{supported()};  // never more than are supported

// The function for this machine of several that do the same.
template <class F>
F* choose(F* anywhere, F* avx2, F* avx512) {
  switch (instructions.load(std::memory_order_relaxed)) {
    case kAvx512: return avx512;
    case kAvx2: return avx2;
    case kAnywhere: break;
  }
  return anywhere;
}

template <class F>
F* choose(F* anywhere, F* avx2) {
  return choose(anywhere, avx2, avx2);
}

}  // namespace bertgen
