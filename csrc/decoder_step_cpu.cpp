#include "decoder_step_cpu.h"

#include <algorithm>
#include <initializer_list>

#include "int4_int8_cpu.h"
#include "linear_cpu.h"

namespace bertgen {
namespace {

constexpr size_t kMostTogether = 3;  // layers of one input

// Whether one call can multiply by both.
bool same_kind(const Dense& a, const Dense& b) {
  return (a.weight == nullptr) == (b.weight == nullptr) && a.type == b.type &&
         (a.int4.zero == nullptr) == (b.int4.zero == nullptr);
}

// out[:, i * outputs ..] = x times layer i; all layers have one shape, rows of `out` are `stride` apart. Layers of one
// kind are one call, so that the threads share the work of all; their weights may lie anywhere.
void multiply(std::initializer_list<const Dense*> layers, bool int8, const float* x, int64_t rows, float* out,
              int64_t stride, const Threads& threads) {
  const Dense& first = **layers.begin();
  const int64_t count = static_cast<int64_t>(layers.size());
  Linear linears[kMostTogether];
  Int4Linear int4s[kMostTogether];
  size_t i = 0;
  for (const Dense* layer : layers) {
    if (!same_kind(*layer, first)) {
      for (const Dense* one : layers) {
        multiply({one}, int8, x, rows, out, stride, threads);
        out += first.outputs;
      }
      return;
    }
    linears[i] = {layer->weight, layer->bias};
    int4s[i++] = {layer->int4, static_cast<const float*>(layer->bias)};
  }
  if (first.weight != nullptr) {
    linear(x, rows, first.inputs, linears, count, first.outputs, first.type, out, stride, threads);
  } else {
    (int8 ? int4_matmul_int8 : int4_matmul)(x, rows, int4s, count, out, stride, threads);
  }
}

}  // namespace

void apply(const Dense& dense, bool int8, const float* x, int64_t rows, float* out, const Threads& threads) {
  multiply({&dense}, int8, x, rows, out, dense.outputs, threads);
}

void decoder_step(const std::vector<DecoderLayer>& layers, const DecoderStep& step, float* x,
                  DecoderWorkspace& workspace, const Threads& threads) {
  const Shape shape{step.rows, step.heads, step.width};
  const int64_t rows = step.rows, hidden = step.heads * step.width;
  int64_t widest = 3 * hidden;
  for (const DecoderLayer& layer : layers) widest = std::max(widest, layer.intermediate.outputs);
  float* const wide = workspace.wide.reserve(rows * widest);
  float* const narrow = workspace.narrow.reserve(rows * hidden);
  float *current = x, *next = workspace.other.reserve(rows * hidden);  // the residual, and where the sum with it is made
  const auto add_norm = [&](const Dense& dense, const Norm& norm, const float* from) {
    apply(dense, step.int8, from, rows, next, threads);
    add_layer_norm(next, current, rows, hidden, norm, step.eps, threads);
    std::swap(current, next);
  };
  for (const DecoderLayer& layer : layers) {
    multiply({&layer.query, &layer.key, &layer.value}, step.int8, current, rows, wide, 3 * hidden, threads);
    const auto heads = [&](int64_t i) { return Heads{wide + i * hidden, 3 * hidden, step.width}; };
    decode_attention(shape, heads(0), heads(1), heads(2), layer.pools, step.slots, step.table, step.table_stride,
                     step.lengths, narrow, threads);
    add_norm(layer.attention_output, layer.attention_norm, narrow);
    if (step.sources > 0) {
      apply(layer.cross_query, step.int8, current, rows, wide, threads);
      cross_decode_attention(shape, {wide, hidden, step.width}, layer.source_pools, step.source_table,
                             step.source_table_stride, step.source_lengths, step.cu_rows, step.sources, narrow, threads);
      add_norm(layer.cross_output, layer.cross_norm, narrow);
    }
    apply(layer.intermediate, step.int8, current, rows, wide, threads);
    gelu(wide, rows * layer.intermediate.outputs, threads);
    add_norm(layer.output, layer.output_norm, wide);
  }
  if (current != x) std::copy_n(current, rows * hidden, x);
}

}  // namespace bertgen
