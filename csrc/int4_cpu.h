// Products with a weight of 4 bits in float32 on a CPU; kernels/int4_matmul.py has the equation and the format.
//
// The packed weight is read once. For a few rows of x it is unpacked into registers; for more rows, a few of its rows
// at a time into a buffer that stays in the cache, and csrc/product.h multiplies these. No larger part of the weight is
// unpacked at any time. The division into tasks does not change a bit of the result.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

// A weight [rows, columns]; all arrays dense.
struct Int4 {
  const uint8_t* packed;         // [rows, columns / 2]
  const float* scale;            // [rows, columns / group]
  const float* zero;             // as scale, or null: 8
  const float* codebook;         // [16] or null; with a codebook, zero is not read
  int64_t rows, columns, group;  // 32, 64 or 128 columns to a group, which divides the columns
};

struct Int4Linear {
  Int4 weight;
  const float* bias;  // [weight.rows] or null
};

// x [rows, weight.columns] weight^T + bias for each of `count` layers, side by side: layer i writes columns
// i * weight.rows and on of `out`, whose rows are `stride` apart. All weights have one shape, and all have a
// codebook or none.
void int4_matmul(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                 const Threads& threads);

// out [weight.rows, weight.columns] = the weight. Each value is rounded once after the difference and once after the
// product, as in its definition.
void int4_dequantize(const Int4& weight, float* out, const Threads& threads);

}  // namespace bertgen
