// How floats are stored: in 32 bits, or in 16 as bfloat16 or float16. All arithmetic is in float.
//
//     template <class T>  // Float32, Bfloat16 or Float16
//     with load<Set>(const T*, Vector&) and store<Set>(const Vector&, T*)
//
// Where a function takes any type, it has an address and a FloatType, and `dispatch_type` gives the type.
#pragma once

#include <cstdint>
#include <cstring>

#include "instruction_sets.h"
#include "lanes.h"

#if defined(BERTGEN_X86)
#include <immintrin.h>
#endif

namespace bertgen {

enum FloatType : int { kFloat32, kBfloat16, kFloat16 };

using Float32 = float;

// Bits of a number in 16 bits; the two types differ in what the bits mean.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
static_assert(sizeof(Bfloat16) == 2 && sizeof(Float16) == 2);

constexpr int64_t bytes_of(FloatType type) { return type == kFloat32 ? 4 : 2; }

// One number

inline float as_float(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline uint32_t as_bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

BERTGEN_INLINE float to_float(float number) { return number; }
BERTGEN_INLINE float to_float(Bfloat16 number) { return as_float(static_cast<uint32_t>(number.bits) << 16); }
BERTGEN_INLINE float to_float(Float16 number) {
  const uint32_t sign = static_cast<uint32_t>(number.bits & 0x8000) << 16, rest = number.bits & 0x7fff;
  if (rest >= 0x7c00) return as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);  // infinite or NaN
  // As a number with the exponent of float, times 2^(127 - 15); exact for subnormal numbers, too.
  return as_float(as_bits(as_float(rest << 13) * 5.192296858534828e33f) | sign);
}

// To the nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
template <class T>
T from_float(float number);
template <>
inline float from_float<float>(float number) {
  return number;
}
template <>
inline Bfloat16 from_float<Bfloat16>(float number) {
  const uint32_t bits = as_bits(number);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float number) {
  const uint32_t bits = as_bits(number), rest = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (rest > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00 | (rest >> 13 & 0x3ff))};
  if (rest >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00)};  // from 65520 on
  if (rest < 0x38800000u) {  // below 2^-14: the last bit is worth 2^-24, as that of 0.5 in float
    return {static_cast<uint16_t>(sign | (as_bits(as_float(rest) + 0.5f) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13))};
}

// Eight numbers that begin anywhere. `Converter<Set, T>` has the instructions of a set.

template <class Set, class T>
struct Converter {
  static inline void load(const T* first, Vector& numbers) {
    for (int64_t i = 0; i < kLanes; ++i) numbers[i] = to_float(first[i]);
  }
  static inline void store(const Vector& numbers, T* first) {
    for (int64_t i = 0; i < kLanes; ++i) first[i] = from_float<T>(numbers[i]);
  }
};

template <class Set>
struct Converter<Set, float> {
  static BERTGEN_INLINE void load(const float* first, Vector& numbers) { numbers = vector_at(first).value; }
  static BERTGEN_INLINE void store(const Vector& numbers, float* first) { vector_at(first).value = numbers; }
};

#if defined(BERTGEN_X86)

struct Avx2Bfloat16 {
  BERTGEN_TARGET_AVX2 static inline void load(const Bfloat16* first, Vector& numbers) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    numbers = (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
  }
  BERTGEN_TARGET_AVX2 static inline void store(const Vector& numbers, Bfloat16* first) {
    const __m256 values = (__m256)numbers;
    const __m256i bits = _mm256_castps_si256(values), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i rounded =
        _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first), _mm256_castsi256_si128(packed));
  }
};

struct Avx2Float16 {
  BERTGEN_TARGET_AVX2 static inline void load(const Float16* first, Vector& numbers) {
    numbers = (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first)));
  }
  BERTGEN_TARGET_AVX2 static inline void store(const Vector& numbers, Float16* first) {
    const __m128i packed = _mm256_cvtps_ph((__m256)numbers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first), packed);
  }
};

template <>
struct Converter<Avx2, Bfloat16> : Avx2Bfloat16 {};
template <>
struct Converter<Avx512, Bfloat16> : Avx2Bfloat16 {};
template <>
struct Converter<Avx2, Float16> : Avx2Float16 {};
template <>
struct Converter<Avx512, Float16> : Avx2Float16 {};

#endif

template <class Set, class T>
BERTGEN_INLINE void load(const T* first, Vector& numbers) {
  Converter<Set, T>::load(first, numbers);
}

template <class Set, class T>
BERTGEN_INLINE void store(const Vector& numbers, T* first) {
  Converter<Set, T>::store(numbers, first);
}

// f(T{}) for the type T that `type` names.
template <class F>
auto dispatch_type(FloatType type, const F& f) {
  switch (type) {
    case kFloat32: return f(Float32{});
    case kBfloat16: return f(Bfloat16{});
    case kFloat16: return f(Float16{});
  }
  return f(Float32{});
}

}  // namespace bertgen
