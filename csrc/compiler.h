// What GCC and Clang can do beyond standard C++, and what takes its place for other compilers.
//
// BERTGEN_GNU is defined where the compiler has the extensions of GCC: GCC, Clang, and clang-cl. Only code that this
// macro guards may use them. -DBERTGEN_STANDARD_CPP builds as a compiler without extensions does.
#pragma once

#if defined(__GNUC__) || defined(__clang__)
#if !defined(BERTGEN_STANDARD_CPP)
#define BERTGEN_GNU
#endif
#endif

// BERTGEN_INLINE: inlined into each caller, and so compiled for the target of that caller.
// BERTGEN_UNROLL: before a loop of eight.
#if defined(BERTGEN_GNU)
#define BERTGEN_INLINE inline __attribute__((always_inline))
#define BERTGEN_UNROLL _Pragma("GCC unroll 8")
#elif defined(_MSC_VER)
#define BERTGEN_INLINE __forceinline
#define BERTGEN_UNROLL
#else
#define BERTGEN_INLINE inline
#define BERTGEN_UNROLL
#endif

namespace bertgen {

enum Cache : int { kSecondCache = 2, kFirstCache = 3 };

// Begins to bring the cache line of `address` into the cache. Only a hint: elsewhere it does nothing.
template <Cache cache>
BERTGEN_INLINE void prefetch([[maybe_unused]] const void* address) {
#if defined(BERTGEN_GNU)
  __builtin_prefetch(address, 0, cache);
#endif
}

// Called between two looks at a variable that another thread changes: the processor then looks less often. Only a hint.
inline void relax() {
#if defined(BERTGEN_GNU) && (defined(__x86_64__) || defined(__i386__))
  __builtin_ia32_pause();
#elif defined(BERTGEN_GNU) && defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace bertgen
