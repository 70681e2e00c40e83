// One token of every row through the layers of a decoder, in float32 on a CPU, in one call: between the products of few
// rows, which take some microseconds each, there is time for nothing but arithmetic.
//
// It is what bertgen/layers/block.py computes with one operator after the other, by the same functions.
#pragma once

#include <cstdint>
#include <vector>

#include "int4_cpu.h"
#include "threads.h"

namespace bertgen {

// x W^T + bias; the weight is in floats, or in 4 bits where `weight` is null.
struct Dense {
  const float* weight;
  Int4 int4;
  const float* bias;  // or null
  int64_t outputs, inputs;
};

struct Norm {
  const float *weight, *shift;
};

struct CrossAttention {
  Dense query, output;
  Norm norm;
  const float *keys, *values;  // pools [slots, heads, width]
};

struct DecoderLayer {
  Dense projections[3];  // query, key, value
  Dense output;
  Norm norm;
  float *keys, *values;  // pools [slots, heads, width]
  CrossAttention cross;  // where there are sources
  Dense inner, outer;
  Norm outer_norm;
};

// Where the rows stand; the same for all layers. csrc/decode_attention_cpu.h says what the tables hold.
struct DecoderStep {
  int64_t rows, heads, width;
  float eps;
  const int64_t* slots;
  const int32_t* table;
  int64_t table_stride;
  const int32_t* lengths;
  int64_t sources;  // 0: without cross-attention
  const int32_t* source_table;
  int64_t source_table_stride;
  const int32_t *source_lengths, *cu_rows;
  bool int8;  // products with weights in 4 bits are those of integers
};

// x [rows, heads * width] -> the output of the last layer, in place. Post-LN layers with GELU.
void decoder_step(const std::vector<DecoderLayer>& layers, const DecoderStep& step, float* x, const Threads& threads);

}  // namespace bertgen
