// LayerNorm after a residual sum, and GELU, in float on a CPU; kernels/layernorm_gelu.py has the equations. A row of
// the norm and an element of GELU do not depend on the others.
#pragma once

#include <cstdint>

#include "float_types.h"
#include "threads.h"

namespace bertgen {

struct Norm {
  const void *weight, *shift;  // [columns]
  FloatType type;              // of both
};

// x [rows, columns] -> LayerNorm(x + residual) weight + shift, in place.
void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const Norm& norm, float eps,
                    const Threads& threads);

// The same into `out`, which may be x; without a residual where that is null, with the bits that one of zeros gives.
void add_layer_norm(const float* x, const float* residual, int64_t rows, int64_t columns, const Norm& norm, float eps,
                    float* out, const Threads& threads);

// x [rows, columns] -> LayerNorm(GELU(x)) weight + shift in `out`, which may be x: the bits of the two functions.
void gelu_layer_norm(const float* x, int64_t rows, int64_t columns, const Norm& norm, float eps, float* out,
                     const Threads& threads);

// x -> x (1 + erf(x / sqrt(2))) / 2, in place; erf by Abramowitz and Stegun 7.1.26, whose error is at most 1.5e-7.
void gelu(float* x, int64_t count, const Threads& threads);

}  // namespace bertgen
