// The loop of products of few rows: a few rows of the weight at a time, each multiplied with all rows of x. The weight
// is stored in any type of floats, everything else is float. Every element of the result is the same sum in the same order,
// whatever the number of rows.
#pragma once

#include <cstdint>

#include "compiler.h"
#include "float_types.h"
#include "vector.h"

namespace bertgen {

constexpr int64_t kTileRows = 4;    // rows of x in a tile
constexpr int64_t kCacheLine = 64;  // bytes
constexpr int64_t kShortRow = 2048;  // bytes of a row of the weight

// Rows of the weight in a tile: 12 sums and 4 vectors of x fill 16 registers. AVX-512 has 32 registers, but with six
// rows of more than 1024 columns the tile no longer stays in the first cache until the next rows of x use it.
template <class Set>
inline constexpr int kTileOutputs = 3;
#if defined(BERTGEN_X86)
template <>
inline constexpr int kTileOutputs<Avx512> = 4;
#endif

// out [rows, outputs] = x [rows, inputs] weight [outputs, inputs]^T + bias [outputs], the bias may be null; rows of
// `out` are `stride` apart. T is the type of the weight and the bias.
template <class T>
struct Product {
  const float* x;
  int64_t rows, inputs;
  const T* weight;
  int64_t outputs;
  const T* bias;
  float* out;
  int64_t stride;
};

// Writes sums [kM, kN] plus the bias [kN], which may be null, to `out`, whose rows are `stride` apart.
template <int kM, int kN, int kCount, class T>
BERTGEN_INLINE void store_sums(const float (&sums)[kCount], const T* bias, float* out, int64_t stride) {
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) out[i * stride + j] = sums[i * kN + j] + (bias == nullptr ? 0.0f : to_float(bias[j]));
  }
}

// sums[i, j] += x[i] weight[j], eight columns of kM rows of x and kN rows of the weight, which are `columns` wide.
template <class Set, int kM, int kN, class T, int kCount>
BERTGEN_INLINE void add_products(const float* x, const T* weight, int64_t columns, Vector (&sums)[kCount]) {
  Vector part[kM];
  for (int i = 0; i < kM; ++i) part[i] = vector_at(x + i * columns).value;
  for (int j = 0; j < kN; ++j) {
    Vector row;
    load<Set>(weight + j * columns, row);
    for (int i = 0; i < kM; ++i) sums[i * kN + j] += part[i] * row;
  }
}

template <class T>
BERTGEN_INLINE bool has_short_rows(const Product<T>& p) {
  return p.inputs <= kShortRow / static_cast<int64_t>(sizeof(T));
}

// out[m, n] for kM rows of x, from m on, and kN rows of the weight, from n on. With `fetch_next` those of a later tile
// are fetched into the second cache, which can have more loads in flight than the first: of the next tile row beside
// row, or where rows are short, of the one after it in the order of memory.
template <class Set, int kM, int kN, class T>
BERTGEN_INLINE void multiply_tile(const Product<T>& p, int64_t m, int64_t n, bool fetch_next) {
  constexpr int64_t kLine = kCacheLine / sizeof(T);
  const float* x = p.x + m * p.inputs;
  const T* w = p.weight + n * p.inputs;
  const bool is_short = has_short_rows(p);
  const T* later = w + (is_short ? 2 : 1) * kN * p.inputs;
  const int64_t row_step = is_short ? kLine : p.inputs, column_step = is_short ? kN : 1;
  Vector sums[whole_vectors(kM * kN)] = {};
  int64_t k = 0;
  for (; k + kLine <= p.inputs; k += kLine) {
    if (fetch_next) {
      for (int j = 0; j < kN; ++j) prefetch<kSecondCache>(later + j * row_step + k * column_step);
    }
    for (int64_t i = k; i < k + kLine; i += kLanes) add_products<Set, kM, kN>(x + i, w + i, p.inputs, sums);
  }
  for (; k + kLanes <= p.inputs; k += kLanes) add_products<Set, kM, kN>(x + k, w + k, p.inputs, sums);
  for (; k < p.inputs; ++k) {
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) sums[i * kN + j][0] += x[i * p.inputs + k] * to_float(w[j * p.inputs + k]);
    }
  }
  float totals[whole_vectors(kM * kN)];
  add_across(sums, totals);
  store_sums<kM, kN>(totals, p.bias == nullptr ? nullptr : p.bias + n, p.out + m * p.stride + n, p.stride);
}

// Columns first .. last - 1 of the product, too few for a tile: one element at a time.
template <class Set, class T>
BERTGEN_INLINE void multiply_last(const Product<T>& p, int64_t first, int64_t last) {
  for (int64_t n = first; n < last; ++n) {
    for (int64_t m = 0; m < p.rows; ++m) multiply_tile<Set, 1, 1>(p, m, n, false);
  }
}

// All rows of x and kN rows of the weight, which the first tile brings into the cache.
template <class Set, int kN, class T>
BERTGEN_INLINE void multiply_rows(const Product<T>& p, int64_t n) {
  const bool fetch_next = n + 3 * kN <= p.outputs;
  int64_t m = 0;
  for (; m + kTileRows <= p.rows; m += kTileRows) multiply_tile<Set, kTileRows, kN>(p, m, n, fetch_next && m == 0);
  switch (p.rows - m) {
    case 3: multiply_tile<Set, 3, kN>(p, m, n, fetch_next && m == 0); break;
    case 2: multiply_tile<Set, 2, kN>(p, m, n, fetch_next && m == 0); break;
    case 1: multiply_tile<Set, 1, kN>(p, m, n, fetch_next && m == 0); break;
  }
}

// The only row of x.
template <class Set, int kN, class T>
BERTGEN_INLINE void multiply_one(const Product<T>& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kN <= last; n += kN) multiply_tile<Set, 1, kN>(p, 0, n, n + 3 * kN <= p.outputs);
  multiply_last<Set>(p, n, last);
}

// Columns first .. last - 1 of the product. With one row of x a tile has more outputs, because each of its sums waits
// for its last addition.
template <class Set, class T>
BERTGEN_INLINE void multiply(const Product<T>& p, int64_t first, int64_t last) {
  if (p.rows == 1) {
    return has_short_rows(p) ? multiply_one<Set, 4>(p, first, last) : multiply_one<Set, 8>(p, first, last);
  }
  constexpr int kN = kTileOutputs<Set>;
  int64_t n = first;
  for (; n + kN <= last; n += kN) multiply_rows<Set, kN>(p, n);
  multiply_last<Set>(p, n, last);
}

}  // namespace bertgen
