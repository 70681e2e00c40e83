// decode_attention and cross_decode_attention in float32 on a CPU; kernels/decode_attention.py has the equations.
//
// A task is the rows that share keys (one row, or the rows of a source) times some heads. It goes through its keys
// once and through its values once, eight slots at a time, so that a slot's heads are read as they lie in memory; the
// scores in between stay in the cache of its core. How tasks are cut and who computes them does not change a bit of
// the result: heads and rows are independent.
#pragma once

#include <cstdint>

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

// Row r writes its key and value to slot slots[r] of the pools [slots, heads, width], and attends to the slots
// table[r * table_stride + t], t < lengths[r], and to its new key. No row's history holds a slot written by this call.
// Rows that share a slot to write (one that nobody reads) leave any mixture of themselves there. All numbers of slots
// are the caller's to check.
void decode_attention(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, float* key_pool,
                      float* value_pool, const int64_t* slots, const int32_t* table, int64_t table_stride,
                      const int32_t* lengths, float* out, const Threads& threads);

// Rows cu_rows[b] .. cu_rows[b + 1] - 1 attend to the slots table[b * table_stride + t], t < lengths[b]; without any
// their result is 0.
void cross_decode_attention(const Shape& shape, const Heads& q, const float* key_pool, const float* value_pool,
                            const int32_t* table, int64_t table_stride, const int32_t* lengths,
                            const int32_t* cu_rows, int64_t sources, float* out, const Threads& threads);

}  // namespace bertgen
