// The loop of products of few rows in float32: a few rows of the weight at a time, each of them against all rows of x.
// Every element is the same sum in the same order, whatever is computed beside it.
#pragma once

#include <cstdint>

#include "vector.h"

namespace bertgen {

constexpr int64_t kRows = 4;  // of x that are multiplied at a time

// Rows of the weight that are multiplied with them: 12 sums and 4 vectors of x fill 16 registers. AVX-512 has 32, but
// with six rows more columns than 1024 leave the first cache before the next rows of x come to them.
constexpr int kOutputs = 3, kOutputsAvx512 = 4;

// out [rows, outputs] = x [rows, inputs] weight [outputs, inputs]^T + bias [outputs], the bias may be null; rows of
// `out` are `stride` apart.
struct Product {
  const float* x;
  int64_t rows, inputs;
  const float* weight;
  int64_t outputs;
  const float* bias;
  float* out;
  int64_t stride;
};

// out[m, n] for kM rows of x, from m on, and kN rows of the weight, from n on. `ahead` is whether the rows behind these
// are wanted in the second cache: more can be on their way there than to the first.
template <int kM, int kN>
BERTGEN_INLINE void block(const Product& p, int64_t m, int64_t n, bool ahead) {
  const float *x = p.x + m * p.inputs, *w = p.weight + n * p.inputs;
  Vector sums[kM * kN <= kLanes ? kLanes : 2 * kLanes] = {};
  int64_t k = 0;
  for (; k + 2 * kLanes <= p.inputs; k += 2 * kLanes) {
    if (ahead) {
      for (int j = 0; j < kN; ++j) __builtin_prefetch(w + (kN + j) * p.inputs + k, 0, 2);
    }
    for (int64_t half = k; half < k + 2 * kLanes; half += kLanes) {
      Vector part[kM];
      for (int i = 0; i < kM; ++i) part[i] = *reinterpret_cast<const Vector*>(x + i * p.inputs + half);
      for (int j = 0; j < kN; ++j) {
        const Vector row = *reinterpret_cast<const Vector*>(w + j * p.inputs + half);
        for (int i = 0; i < kM; ++i) sums[i * kN + j] += part[i] * row;
      }
    }
  }
  for (; k < p.inputs; ++k) {
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) sums[i * kN + j][0] += x[i * p.inputs + k] * w[j * p.inputs + k];
    }
  }
  float totals[2 * kLanes];
  Vector total;
  add_across(reinterpret_cast<Vector(&)[kLanes]>(sums[0]), total);
  *reinterpret_cast<Vector*>(totals) = total;
  if (kM * kN > kLanes) {
    add_across(reinterpret_cast<Vector(&)[kLanes]>(sums[kM * kN > kLanes ? kLanes : 0]), total);
    *reinterpret_cast<Vector*>(totals + kLanes) = total;
  }
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      p.out[(m + i) * p.stride + n + j] = totals[i * kN + j] + (p.bias == nullptr ? 0.0f : p.bias[n + j]);
    }
  }
}

// All rows of x and kN rows of the weight, which the first rows of x bring into the cache.
template <int kN>
BERTGEN_INLINE void blocks(const Product& p, int64_t n) {
  const bool ahead = n + 2 * kN <= p.outputs;
  int64_t m = 0;
  for (; m + kRows <= p.rows; m += kRows) block<kRows, kN>(p, m, n, ahead && m == 0);
  switch (p.rows - m) {
    case 3: block<3, kN>(p, m, n, ahead && m == 0); break;
    case 2: block<2, kN>(p, m, n, ahead && m == 0); break;
    case 1: block<1, kN>(p, m, n, ahead && m == 0); break;
  }
}

// Columns first .. last - 1 of the product, kN at a time.
template <int kN>
BERTGEN_INLINE void multiply(const Product& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kN <= last; n += kN) blocks<kN>(p, n);
  for (; n < last; ++n) blocks<1>(p, n);
}

}  // namespace bertgen
