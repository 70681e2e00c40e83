// One token of every row through the layers of a decoder on a CPU, in one call: the products of few rows take some
// microseconds each, as long as a call of an operator from Python.
//
// Parameters and pools stay in the type in which they are stored, everything else is float. In float32 the result is
// that of the modules in bertgen/layers/block.py, which call the same functions one after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decode_attention_cpu.h"
#include "float_types.h"
#include "int4_cpu.h"
#include "layernorm_gelu_cpu.h"
#include "threads.h"

namespace bertgen {

// x W^T + bias; the weight is in floats, or in 4 bits where `weight` is null.
struct Dense {
  const void* weight;  // [outputs, inputs]
  Int4 int4;
  const void* bias;  // [outputs] or null
  FloatType type;    // of the weight and the bias; with a weight in 4 bits kFloat32
  int64_t outputs, inputs;
};

// Post-LN, with GELU; hidden is heads * width. csrc/bindings/decoder_step.cpp has the order in which a caller gives
// these.
struct DecoderLayer {
  Dense query, key, value, attention_output;
  Norm attention_norm;
  Pools pools;  // [slots, heads, width]

  Dense cross_query, cross_output;  // cross-attention: read where there are sources
  Norm cross_norm;
  Pools source_pools;  // [source slots, heads, width]

  Dense intermediate, output;
  Norm output_norm;
};

// Where the rows and their sources have their slots, the same in all layers; csrc/decode_attention_cpu.h explains the
// tables.
struct DecoderStep {
  int64_t rows, heads, width;
  float eps;
  bool int8;  // products with weights in 4 bits are those of int4_matmul_int8
  const int64_t* slots;
  const int32_t* table;
  int64_t table_stride;
  const int32_t* lengths;
  int64_t sources;  // 0: no cross-attention
  const int32_t* source_table;
  int64_t source_table_stride;
  const int32_t *source_lengths, *cu_rows;
};

// Memory that grows to the most floats asked for, and then serves one call after another.
class Buffer {
 public:
  float* reserve(int64_t size) {
    if (size > size_) {
      data_.reset(new float[size]);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<float[]> data_;
  int64_t size_ = 0;
};

struct DecoderWorkspace {
  Buffer wide, narrow, other;
};

// x [rows, inputs] times the weight of a layer -> out [rows, outputs]. `int8` is that of DecoderStep.
void apply(const Dense& dense, bool int8, const float* x, int64_t rows, float* out, const Threads& threads);

// x [rows, hidden] -> the output of the last layer, in place.
void decoder_step(const std::vector<DecoderLayer>& layers, const DecoderStep& step, float* x,
                  DecoderWorkspace& workspace, const Threads& threads);

}  // namespace bertgen
