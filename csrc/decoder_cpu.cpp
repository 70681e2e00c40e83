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

constexpr int64_t kTogether = 3;  // layers of one input, at most

// out[:, i * outputs ..] = x times layer i of `count` that have one shape; rows of `out` are `stride` apart. Weights lie
// where they lie: what is shared is the walk of the threads along all of them.
void multiply(const Dense* layers, int64_t count, bool int8, const float* x, int64_t rows, float* out, int64_t stride,
              const Threads& threads) {
  const Dense& first = layers[0];
  const bool floats = first.weight != nullptr;
  Linear linears[kTogether];
  Int4Linear int4s[kTogether];
  for (int64_t i = 0; i < count; ++i) {
    const Dense& layer = layers[i];
    if ((layer.weight != nullptr) != floats || (layer.int4.zero == nullptr) != (first.int4.zero == nullptr)) {
      // Of several kinds: one after the other.
      for (int64_t j = 0; j < count; ++j) {
        multiply(layers + j, 1, int8, x, rows, out + j * first.outputs, stride, threads);
      }
      return;
    }
    linears[i] = {layer.weight, layer.bias};
    int4s[i] = {layer.int4, layer.bias};
  }
  if (floats) {
    linear(x, rows, first.inputs, linears, count, first.outputs, out, stride, threads);
  } else {
    (int8 ? int4_matmul_int8 : int4_matmul)(x, rows, int4s, count, out, stride, threads);
  }
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
    bertgen::multiply(&dense, 1, step.int8, from, rows, out, dense.outputs, threads);
  };
  const auto add_norm = [&](const Dense& dense, const Norm& norm, const float* from) {
    multiply(dense, from, next);
    add_layer_norm(next, current, rows, hidden, norm.weight, norm.shift, step.eps, threads);
    std::swap(current, next);
  };
  for (const DecoderLayer& layer : layers) {
    bertgen::multiply(layer.projections, 3, step.int8, current, rows, wide, 3 * hidden, threads);
    const auto heads = [&](int64_t i) { return Heads{wide + i * hidden, 3 * hidden, step.width}; };
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
