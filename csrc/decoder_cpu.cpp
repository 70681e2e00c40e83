#include "decoder_cpu.h"

#include <algorithm>
#include <memory>

#include "decode_attention_cpu.h"
#include "int4_int8_cpu.h"
#include "layernorm_gelu_cpu.h"
#include "linear_cpu.h"

namespace bertgen {
namespace {

struct Buffer {
  std::unique_ptr<float[]> data;
  explicit Buffer(int64_t size) : data(new float[size]) {}
  operator float*() const { return data.get(); }
};

void multiply(const Dense& dense, bool int8, const float* x, int64_t rows, float* out, const Threads& threads) {
  if (dense.weight != nullptr) {
    linear(x, rows, dense.inputs, dense.weight, dense.outputs, dense.bias, out, threads);
  } else {
    (int8 ? int4_matmul_int8 : int4_matmul)(x, rows, dense.int4, dense.bias, out, threads);
  }
}

template <class T>
bool follows(const T* second, const T* first, int64_t count) {
  return first == nullptr ? second == nullptr : second == first + count;
}

// Whether the rows of `second` lie behind those of `first`, so that both are one product.
bool follows(const Dense& second, const Dense& first) {
  const Int4 &a = first.int4, &b = second.int4;
  const int64_t outputs = first.outputs, weights = outputs * first.inputs;
  if (second.outputs != outputs || second.inputs != first.inputs || !follows(second.bias, first.bias, outputs)) {
    return false;
  }
  if (first.weight != nullptr || second.weight != nullptr) {
    return first.weight != nullptr && follows(second.weight, first.weight, weights);
  }
  const int64_t groups = weights / a.group;
  return a.group == b.group && a.codebook == b.codebook && follows(b.packed, a.packed, weights / 2) &&
         follows(b.scale, a.scale, groups) && follows(b.zero, a.zero, groups);
}

Dense joined(const Dense& first, int64_t count) {
  Dense all = first;
  all.outputs *= count;
  all.int4.rows *= count;
  return all;
}

}  // namespace

void decoder_step(const std::vector<DecoderLayer>& layers, const DecoderStep& step, float* x, const Threads& threads) {
  const Shape shape{step.rows, step.heads, step.width};
  const int64_t rows = step.rows, hidden = step.heads * step.width;
  int64_t widest = 3 * hidden;
  for (const DecoderLayer& layer : layers) widest = std::max(widest, layer.inner.outputs);
  const Buffer wide(rows * widest), narrow(rows * hidden), other(rows * hidden);
  float *current = x, *next = other;  // the residual, and where the sum with it is made
  const auto multiply = [&](const Dense& dense, const float* from, float* out) {
    bertgen::multiply(dense, step.int8, from, rows, out, threads);
  };
  const auto add_norm = [&](const Dense& dense, const Norm& norm, const float* from) {
    multiply(dense, from, next);
    add_layer_norm(next, current, rows, hidden, norm.weight, norm.shift, step.eps, threads);
    std::swap(current, next);
  };
  for (const DecoderLayer& layer : layers) {
    const bool one = follows(layer.key, layer.query) && follows(layer.value, layer.key);
    if (one) {
      multiply(joined(layer.query, 3), current, wide);
    } else {
      multiply(layer.query, current, wide);
      multiply(layer.key, current, wide + rows * hidden);
      multiply(layer.value, current, wide + 2 * rows * hidden);
    }
    const auto heads = [&](int64_t i) {
      const int64_t start = one ? i * hidden : i * rows * hidden;
      return Heads{wide + start, one ? 3 * hidden : hidden, step.width};
    };
    decode_attention(shape, heads(0), heads(1), heads(2), layer.keys, layer.values, step.slots, step.table,
                     step.table_stride, step.lengths, narrow, threads);
    add_norm(layer.output, layer.norm, narrow);
    if (step.sources > 0) {
      const CrossAttention& cross = layer.cross;
      multiply(cross.query, current, wide);
      cross_decode_attention(shape, {wide, hidden, step.width}, cross.keys, cross.values, step.source_table,
                             step.source_table_stride, step.source_lengths, step.cu_rows, step.sources, narrow,
                             threads);
      add_norm(cross.output, cross.norm, narrow);
    }
    multiply(layer.inner, current, wide);
    gelu(wide, rows * layer.inner.outputs, threads);
    add_norm(layer.outer, layer.outer_norm, wide);
  }
  if (current != x) std::copy_n(current, rows * hidden, x);
}

}  // namespace bertgen
