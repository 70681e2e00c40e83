// Products of few rows with a large weight in float32 on a CPU; kernels/linear.py has the equation.
//
// Their time is that of reading the weight, so it is read once, as it lies, a few of its rows at a time, each of them
// against all rows of x. What each thread takes does not change a bit of the result, nor does the number of rows of x:
// every element is the same sum in the same order.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

// out [rows, outputs] = x [rows, inputs] weight [outputs, inputs]^T + bias [outputs]; all dense, the bias may be null.
void linear(const float* x, int64_t rows, int64_t inputs, const float* weight, int64_t outputs, const float* bias,
            float* out, const Threads& threads);

}  // namespace bertgen
