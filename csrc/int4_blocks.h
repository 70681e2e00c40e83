// How a weight of 4 bits is walked along: in blocks of 64 weights of a row, which are eight words of eight nibbles. Half
// a block, where the columns end with one, is filled up with zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "int4_cpu.h"
#include "vector.h"

namespace bertgen {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte of a word is taken to be its lowest");

constexpr int64_t kBlock = kLanes * kLanes;

typedef int32_t Words __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));

inline int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// Words of row n from column k on.
BERTGEN_INLINE void load(const Int4& w, int64_t n, int64_t k, Words& words) {
  const uint8_t* packed = w.packed + ((n * w.columns + k) >> 1);
  if (k + kBlock <= w.columns) {
    words = *reinterpret_cast<const Words*>(packed);
  } else {
    words = Words{};
    std::memcpy(&words, packed, kBlock / 4);
  }
}

// The number of its group for each word of the block of row n from column k on, of an array like the scales.
BERTGEN_INLINE void spread(const Int4& w, const float* numbers, int64_t n, int64_t k, Vector& result) {
  const float* number = numbers + ((n * w.columns + k) >> __builtin_ctzll(w.group));  // a division takes a block's time
  Vector first = *number - Vector{};  // which keeps the sign of a zero
  if (w.group < kBlock) {
    const Vector second = (k + kBlock <= w.columns ? number[1] : 0.0f) - Vector{};
    first = BERTGEN_SHUFFLE(first, second, 0, 1, 2, 3, 12, 13, 14, 15);
  }
  result = first;
}

}  // namespace bertgen
