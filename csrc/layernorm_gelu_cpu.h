// What stands between the products of a decoder layer, in float32 on a CPU; kernels/layernorm_gelu.py has the equations.
// A row, and an element, does not depend on what is computed beside it.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

// x [rows, columns] -> LayerNorm(x + residual) weight + shift, in place; statistics are taken in two passes.
void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const float* weight,
                    const float* shift, float eps, const Threads& threads);

// x -> x (1 + erf(x / sqrt(2))) / 2, in place; erf by Abramowitz and Stegun 7.1.26, whose error is at most 1.5e-7.
void gelu(float* x, int64_t count, const Threads& threads);

}  // namespace bertgen
