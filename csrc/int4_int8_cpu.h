// Products with a weight of 4 bits by integers: each row of x is rounded to 8 bits, the products of a group are summed
// in 32 bits, which is exact, and the sums are scaled in float32. kernels/int4_matmul.py has the definition.
#pragma once

#include <cstdint>

#include "int4_cpu.h"
#include "threads.h"

namespace bertgen {

// As int4_matmul, with the rows of x rounded. No weight has a codebook, and all have zeros or none. A row of `out` does
// not depend on the other rows, to the last bit; it is NaN where its row of x is not finite.
void int4_matmul_int8(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                      const Threads& threads);

}  // namespace bertgen
