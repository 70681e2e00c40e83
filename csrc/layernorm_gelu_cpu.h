// LayerNorm after a residual sum, and GELU, in float32 on a CPU; kernels/layernorm_gelu.py has the equations. A row of
// the norm and an element of GELU do not depend on the others.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

// x [rows, columns] -> LayerNorm(x + residual) weight + shift, in place; the mean first, then the variance. The residual
// may be null.
void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const float* weight,
                    const float* shift, float eps, const Threads& threads);

// x -> x (1 + erf(x / sqrt(2))) / 2, in place; erf by Abramowitz and Stegun 7.1.26, whose error is at most 1.5e-7.
void gelu(float* x, int64_t count, const Threads& threads);

}  // namespace bertgen
