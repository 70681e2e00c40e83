// Products of few rows with a large weight on a CPU; kernels/linear.py has the equation.
//
// Their time is the time of reading the weight. So the weight is read once, where it lies and in the type in which it is
// stored, a few of its rows at a time, each multiplied with all rows of x in float. Neither the division into tasks nor
// the number of rows of x changes a bit of the result: every element is the same sum in the same order.
#pragma once

#include <cstdint>

#include "float_types.h"
#include "threads.h"

namespace bertgen {

struct Linear {
  const void *weight, *bias;  // [outputs, inputs]; [outputs] or null
};

// x [rows, inputs] weight^T + bias for each of `count` layers of one shape, whose weights and biases are of one type,
// side by side: layer i writes columns i * outputs and on of `out`, whose rows are `stride` apart. All other arrays are
// dense.
void linear(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
            FloatType type, float* out, int64_t stride, const Threads& threads);

}  // namespace bertgen
