// decode_attention and cross_decode_attention on a CPU; kernels/decode_attention.py has the equations. Queries, new keys
// and values, and results are in float32; the pools are in float32, bfloat16 or float16.
//
// A task is some heads of the rows that share keys: one row, or the rows of a source. It reads its keys once and its
// values once, eight slots at a time, so that the heads of a slot are read in the order of memory; the scores between
// the two stay in the cache of the core. Heads and rows are independent: the division into tasks does not change a bit
// of the result.
#pragma once

#include <cstdint>

#include "float_types.h"
#include "threads.h"

namespace bertgen {

// [rows, heads, width], the last dimension dense; strides in elements.
struct Heads {
  const float* data;
  int64_t row, head;
};

struct Shape {
  int64_t rows, heads, width;
};

// Keys and values [slots, heads, width], dense, both of one type.
struct Pools {
  void *keys, *values;
  FloatType type;
};

// Row r writes its key and value to slot slots[r] of the pools, and attends to the slots table[r * table_stride + t],
// t < lengths[r], and to its new key. The new key and value are rounded to the type of the pools first, so that this
// step sees them as later steps do. out [rows, heads, width] is dense.
//
// The caller checks the numbers of slots. No row may read a slot that this call writes. Rows may share a slot that no
// row reads; it holds a mixture of their keys and values afterwards.
void decode_attention(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, const Pools& pools,
                      const int64_t* slots, const int32_t* table, int64_t table_stride, const int32_t* lengths,
                      float* out, const Threads& threads);

// Rows cu_rows[b] .. cu_rows[b + 1] - 1 attend to the slots table[b * table_stride + t], t < lengths[b]; where the
// length is 0 their result is 0.
void cross_decode_attention(const Shape& shape, const Heads& q, const Pools& pools, const int32_t* table,
                            int64_t table_stride, const int32_t* lengths, const int32_t* cu_rows, int64_t sources,
                            float* out, const Threads& threads);

}  // namespace bertgen
