// Eight numbers at once: Vector (float), Words (int32_t) and Bits (uint32_t), with the operators of one number for each
// lane, between two of them or with one number for all lanes. A comparison gives Words: all bits of a lane that holds
// are ones.
//
// The vector types of GCC and Clang compile for every machine; the target of a function decides which instructions they
// become. Functions take and return them by reference: the way of passing a value depends on the target. For other
// compilers they are arrays.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "compiler.h"

namespace bertgen {

constexpr int64_t kLanes = 8;

#if defined(BERTGEN_GNU)

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

// A vector in an array of floats, wherever it begins. Only a packed structure tells all compilers that it may begin
// anywhere: Clang forgets the alignment of a typedef behind a reference and in a template.
struct __attribute__((packed, may_alias)) StoredVector {
  Vector value;
};

// The elements with these constant indices: 0 to 7 are those of a, 8 to 15 those of b.
#if defined(__clang__)
#define BERTGEN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BERTGEN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ::bertgen::Bits{__VA_ARGS__})
#endif

// In each lane: yes where the comparison holds, else no.
#define BERTGEN_SELECT(comparison, yes, no) ((comparison) ? (yes) : (no))

#else

template <class T>
struct Lanes {
  T lanes[kLanes];

  Lanes() = default;
  Lanes(T number) {
    for (T& lane : lanes) lane = number;
  }

  T& operator[](int64_t i) { return lanes[i]; }
  const T& operator[](int64_t i) const { return lanes[i]; }

#define BERTGEN_EACH_LANE(op, Result, value)                   \
  friend Result operator op(const Lanes& a, const Lanes& b) {  \
    Result result;                                             \
    for (int64_t i = 0; i < kLanes; ++i) result[i] = value;    \
    return result;                                             \
  }
#define BERTGEN_OPERATOR(op, value)                            \
  BERTGEN_EACH_LANE(op, Lanes, static_cast<T>(value))          \
  friend Lanes& operator op##=(Lanes& a, const Lanes& b) { return a = a op b; }
  BERTGEN_OPERATOR(+, a[i] + b[i])
  BERTGEN_OPERATOR(-, a[i] - b[i])
  BERTGEN_OPERATOR(*, a[i] * b[i])
  BERTGEN_OPERATOR(/, a[i] / b[i])
  BERTGEN_OPERATOR(&, a[i] & b[i])
  BERTGEN_OPERATOR(|, a[i] | b[i])
  BERTGEN_OPERATOR(^, a[i] ^ b[i])
  BERTGEN_OPERATOR(>>, a[i] >> b[i])
  BERTGEN_OPERATOR(<<, static_cast<uint32_t>(a[i]) << b[i])  // that of a negative number is undefined
  BERTGEN_EACH_LANE(<, Lanes<int32_t>, a[i] < b[i] ? -1 : 0)
  BERTGEN_EACH_LANE(>, Lanes<int32_t>, a[i] > b[i] ? -1 : 0)
#undef BERTGEN_OPERATOR
#undef BERTGEN_EACH_LANE

  friend Lanes operator-(const Lanes& a) {
    Lanes result;
    for (int64_t i = 0; i < kLanes; ++i) result[i] = -a[i];
    return result;
  }
};

using Vector = Lanes<float>;
using Words = Lanes<int32_t>;
using Bits = Lanes<uint32_t>;

struct StoredVector {
  Vector value;
};

template <int... indices>
Vector shuffle(const Vector& a, const Vector& b) {
  const float chosen[] = {(indices < kLanes ? a : b)[indices % kLanes]...};
  Vector result;
  std::memcpy(&result, chosen, sizeof result);
  return result;
}
#define BERTGEN_SHUFFLE(a, b, ...) ::bertgen::shuffle<__VA_ARGS__>(a, b)

template <class T>
Lanes<T> select(const Words& comparison, const Lanes<T>& yes, const Lanes<T>& no) {
  Lanes<T> result;
  for (int64_t i = 0; i < kLanes; ++i) result[i] = comparison[i] != 0 ? yes[i] : no[i];
  return result;
}
#define BERTGEN_SELECT(comparison, yes, no) ::bertgen::select(comparison, yes, no)

#endif

static_assert(sizeof(StoredVector) == sizeof(float[kLanes]) && alignof(StoredVector) <= alignof(float));

// The eight floats from here on.
BERTGEN_INLINE StoredVector& vector_at(float* first) { return *reinterpret_cast<StoredVector*>(first); }
BERTGEN_INLINE const StoredVector& vector_at(const float* first) {
  return *reinterpret_cast<const StoredVector*>(first);
}

// Words from bytes that begin anywhere.
BERTGEN_INLINE void load_words(const uint8_t* first, Words& words) {
#if defined(BERTGEN_GNU)
  // One load: with memcpy GCC takes a fifth more time for a product with weights in 4 bits.
  struct __attribute__((packed, may_alias)) StoredWords {
    Words value;
  };
  words = reinterpret_cast<const StoredWords*>(first)->value;
#else
  std::memcpy(&words, first, sizeof words);
#endif
}

BERTGEN_INLINE void to_floats(const Words& words, Vector& result) {
#if defined(BERTGEN_GNU)
  result = __builtin_convertvector(words, Vector);
#else
  for (int64_t i = 0; i < kLanes; ++i) result[i] = static_cast<float>(words[i]);
#endif
}

// Whether a bit of some lane is one.
BERTGEN_INLINE bool any(const Words& words) {
  uint64_t parts[kLanes / 2];
  std::memcpy(parts, &words, sizeof parts);
  return (parts[0] | parts[1] | parts[2] | parts[3]) != 0;
}

// result[i] = element indices[i] mod 16 of a table of 16 floats.
BERTGEN_INLINE void look_up(const Vector (&table)[2], const Words& indices, Vector& result) {
#if defined(BERTGEN_GNU) && !defined(__clang__)
  result = __builtin_shuffle(table[0], table[1], indices);
#else
  for (int64_t i = 0; i < kLanes; ++i) {
    const int32_t index = indices[i] & 15;
    result[i] = table[index / kLanes][index % kLanes];
  }
#endif
}

}  // namespace bertgen
