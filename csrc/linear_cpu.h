// Products of few rows with a large weight in float32 on a CPU; kernels/linear.py has the equation.
//
// Their time is that of reading the weight, so it is read once, as it lies, a few of its rows at a time, each of them
// against all rows of x. What each thread takes does not change a bit of the result, nor does the number of rows of x:
// every element is the same sum in the same order.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

struct Linear {
  const float *weight, *bias;  // [outputs, inputs]; [outputs] or null
};

// x [rows, inputs] weight^T + bias of each of `count` layers, wherever their weights lie: columns i * outputs and on of
// `out`, whose rows are `stride` apart, are those of layer i. All else is dense.
void linear(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
            float* out, int64_t stride, const Threads& threads);

}  // namespace bertgen
