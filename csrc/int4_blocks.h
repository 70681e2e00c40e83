// How products walk along a weight of 4 bits and along x: in blocks of 64 columns of a row. A block of the weight is
// eight words of eight nibbles. Where a row ends with half a block, the other half is zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "int4_cpu.h"
#include "vector.h"

namespace bertgen {

#if defined(__BYTE_ORDER__)  // elsewhere all machines are of this kind
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte of a word must be its lowest");
#endif

constexpr int64_t kBlock = kLanes * kLanes;

inline int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// The packed bytes of row n from column k on.
BERTGEN_INLINE const uint8_t* packed_at(const Int4& w, int64_t n, int64_t k) {
  return w.packed + ((n * w.columns + k) >> 1);
}

// The block of row n from column k on.
BERTGEN_INLINE void load_block(const Int4& w, int64_t n, int64_t k, Words& words) {
  const uint8_t* packed = packed_at(w, n, k);
  if (k + kBlock <= w.columns) {
    load_words(packed, words);
  } else {
    words = Words{};
    std::memcpy(&words, packed, kBlock / 4);
  }
}

// For each word of the block of row n from column k on, the number of its group in `numbers` [rows, columns / group].
BERTGEN_INLINE void load_groups(const Int4& w, const float* numbers, int64_t n, int64_t k, Vector& result) {
  const int64_t shift = 5 + (w.group >> 6);  // log2 of the 32, 64 or 128 columns: a division takes a block's time
  const float* number = numbers + ((n * w.columns + k) >> shift);
  Vector first = *number - Vector{};  // which keeps the sign of a zero
  if (w.group < kBlock) {
    const Vector second = (k + kBlock <= w.columns ? number[1] : 0.0f) - Vector{};
    first = BERTGEN_SHUFFLE(first, second, 0, 1, 2, 3, 12, 13, 14, 15);
  }
  result = first;
}

// The 64 elements of x [columns] from k on, in the order of the nibbles: lane i of parts[j] is x[k + 8 i + j], which
// nibble j of word i of the weight multiplies.
BERTGEN_INLINE void gather_block(const float* x, int64_t columns, int64_t k, Vector (&parts)[kLanes]) {
  for (int64_t i = 0; i < kLanes; ++i) {
    const bool present = i < kLanes / 2 || k + kBlock <= columns;
    parts[i] = present ? vector_at(x + k + i * kLanes).value : Vector{};
  }
  transpose(parts);
}

}  // namespace bertgen
