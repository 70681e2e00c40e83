// The instruction sets that kernels are compiled for, and the choice among them when a kernel is called.
//
// The body of a kernel is a function template of the set, marked BERTGEN_INLINE. BERTGEN_DISPATCH compiles it for each
// set and gives a pointer to the version of the active one:
//
//     template <class Set>
//     BERTGEN_INLINE void scale_row(float* x, int64_t count, float factor) { .. }
//
//     const auto scale_row_active = BERTGEN_DISPATCH(scale_row);
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "compiler.h"

#if defined(BERTGEN_GNU) && defined(__x86_64__) && !defined(BERTGEN_PORTABLE)
#define BERTGEN_X86
#define BERTGEN_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define BERTGEN_TARGET_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define BERTGEN_CPU_HAS(feature) __builtin_cpu_supports(feature)
#else
#define BERTGEN_TARGET_AVX2
#define BERTGEN_TARGET_AVX512
#define BERTGEN_CPU_HAS(feature) false
#endif

// SET(name here, name in Python, compiler target, condition on the processor); each set includes those before it.
// Every processor with AVX2 has F16C; old compilers cannot ask for it.
#define BERTGEN_INSTRUCTION_SETS(SET)                                                                          \
  SET(Portable, "portable", , true)                                                                            \
  SET(Avx2, "avx2", BERTGEN_TARGET_AVX2, BERTGEN_CPU_HAS("avx2") && BERTGEN_CPU_HAS("fma"))                    \
  SET(Avx512, "avx512", BERTGEN_TARGET_AVX512,                                                                 \
      BERTGEN_CPU_HAS("avx512f") && BERTGEN_CPU_HAS("avx512bw") && BERTGEN_CPU_HAS("avx512dq") &&              \
          BERTGEN_CPU_HAS("avx512vl") && BERTGEN_CPU_HAS("avx512vnni"))

namespace bertgen {

enum InstructionSet : int {
#define SET(name, text, target, condition) k##name,
  BERTGEN_INSTRUCTION_SETS(SET)
#undef SET
};

constexpr const char* kInstructionSetNames[] = {
#define SET(name, text, target, condition) text,
    BERTGEN_INSTRUCTION_SETS(SET)
#undef SET
};

// The sets as types: arguments of kernel bodies.
struct Portable {
  static constexpr InstructionSet number = kPortable;
};
#if defined(BERTGEN_X86)
struct Avx2 {
  static constexpr InstructionSet number = kAvx2;
};
struct Avx512 {
  static constexpr InstructionSet number = kAvx512;
};
#endif

// The best set of this processor.
inline InstructionSet best_instruction_set() {
#if defined(BERTGEN_X86)
  __builtin_cpu_init();
#endif
  int count = 0;  // of the sets that it has
#define SET(name, text, target, condition) \
  if (count == k##name && (condition)) ++count;
  BERTGEN_INSTRUCTION_SETS(SET)
#undef SET
  return static_cast<InstructionSet>(count - 1);
}

inline std::atomic<InstructionSet> active_instruction_set{best_instruction_set()};  // never above the best

// Makes the set with this number active, or the best where the number is above it; returns the set that was active
// before. A negative number changes nothing.
inline InstructionSet use_instruction_set(int64_t number) {
  const InstructionSet best = best_instruction_set();
  if (number < 0) return active_instruction_set;
  return active_instruction_set.exchange(number < best ? static_cast<InstructionSet>(number) : best);
}

#if defined(BERTGEN_X86)

// `body` as a function of its own, compiled for the target of Set.
template <class Set, auto body>
struct CompiledFor;

#define SET(name, text, target, condition)                                                                       \
  template <class Result, class... Arguments, Result (*body)(Arguments...)>                                      \
  struct CompiledFor<name, body> {                                                                               \
    target static Result call(Arguments... arguments) { return body(static_cast<Arguments&&>(arguments)...); }   \
  };
BERTGEN_INSTRUCTION_SETS(SET)
#undef SET

// select(Set{}) for the active set, or for Most where the active one is above it.
template <class Most, class F>
auto dispatch(const F& select) {
  switch (active_instruction_set.load(std::memory_order_relaxed)) {
#define SET(name, text, target, condition) \
  case k##name: return select(std::conditional_t<(name::number < Most::number), name, Most>{});
    BERTGEN_INSTRUCTION_SETS(SET)
#undef SET
  }
  return select(Portable{});
}

// For bodies that gain nothing from the sets above `most`: these use its version.
#define BERTGEN_DISPATCH_UP_TO(most, body) \
  ::bertgen::dispatch<most>([](auto set) { return &::bertgen::CompiledFor<decltype(set), &body<decltype(set)>>::call; })

#else  // one target only

#define BERTGEN_DISPATCH_UP_TO(most, body) (&body<::bertgen::Portable>)

#endif

#define BERTGEN_DISPATCH(body) BERTGEN_DISPATCH_UP_TO(::bertgen::Avx512, body)

}  // namespace bertgen
