// Shared by the two products with a weight of 4 bits: their arguments for one layer, and their division into tasks.
// The inner loops are in int4_cpu.cpp (float32) and int4_int8_cpu.cpp (integers).
#pragma once

#include <algorithm>
#include <cstdint>

#include "int4_blocks.h"
#include "int4_cpu.h"
#include "threads.h"

namespace bertgen {

constexpr int64_t kInt4TaskRows = 48;  // rows of the weight to a task

// The product with one layer. `Input` is x as the inner loop reads it.
template <class Input>
struct Int4Product {
  Int4 weight;
  Input x;
  int64_t rows;  // of x
  const float* bias;
  float* out;  // its rows are `stride` apart
  int64_t stride;

  const float* bias_from(int64_t n) const { return bias == nullptr ? nullptr : bias + n; }
};

// Whether a tile of kN rows of the weight from n on is followed by kN more, which it prefetches.
template <int kN>
BERTGEN_INLINE bool has_next_tile(const Int4& w, int64_t n) {
  return n + 2 * kN <= w.rows;
}

// Calls multiply(product, first, last, workspace) for columns first .. last - 1 of each layer, all of them once; the
// arguments are those of int4_matmul.
template <class Workspace, class Input, class F>
void for_each_columns(const Input& x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                      const Threads& threads, const F& multiply) {
  const Int4& shape = layers[0].weight;  // the same for all layers
  const int64_t tasks = (shape.rows + kInt4TaskRows - 1) / kInt4TaskRows;  // of a layer
  const int64_t floats = count * shape.rows * shape.columns / 8;           // the bytes of the weights
  for_each<Workspace>(count * tasks, floats, threads, [&](int64_t i, Workspace& workspace) {
    const int64_t layer = i / tasks, first = i % tasks * kInt4TaskRows;
    const auto& [weight, bias] = layers[layer];
    const Int4Product<Input> product{weight, x, rows, bias, out + layer * weight.rows, stride};
    multiply(product, first, std::min(weight.rows, first + kInt4TaskRows), workspace);
  });
}

}  // namespace bertgen
