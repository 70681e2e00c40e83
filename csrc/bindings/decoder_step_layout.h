// The layout of the arguments of the operator `decoder_step`: the names of its tensors, each once and in their order.
//
// bertgen/ops/step_layout.py names the same tensors. The extension exports these names (`bertgen._C.LAYER_PARTS` and so
// on) and bertgen/ops/extension.py does not use an extension with other names or in another order.
#pragma once

#include <cstddef>

#include "../decoder_step_cpu.h"

namespace bertgen {

// A part of a layer, with its tensors in `parameters`: a Dense is weight and bias, or in 4 bits packed, scale, zero and
// bias, where an empty tensor stands for an absent zero or bias; a Norm is weight and shift.
struct LayerPart {
  const char* name;
  Dense DecoderLayer::*dense;
  Norm DecoderLayer::*norm;  // where `dense` is null
  bool cross;                // present only in layers with cross-attention
};

constexpr LayerPart kLayerParts[] = {
    {"query", &DecoderLayer::query, nullptr, false},
    {"key", &DecoderLayer::key, nullptr, false},
    {"value", &DecoderLayer::value, nullptr, false},
    {"attention_output", &DecoderLayer::attention_output, nullptr, false},
    {"attention_norm", nullptr, &DecoderLayer::attention_norm, false},
    {"cross_query", &DecoderLayer::cross_query, nullptr, true},
    {"cross_output", &DecoderLayer::cross_output, nullptr, true},
    {"cross_norm", nullptr, &DecoderLayer::cross_norm, true},
    {"intermediate", &DecoderLayer::intermediate, nullptr, false},
    {"output", &DecoderLayer::output, nullptr, false},
    {"output_norm", nullptr, &DecoderLayer::output_norm, false},
};

// FIELD(index, name) of the tensors of `tables`; those from source_table on only with cross-attention.
#define BERTGEN_STEP_TABLES(FIELD)       \
  FIELD(kSlots, "slots")                 \
  FIELD(kTable, "table")                 \
  FIELD(kLengths, "lengths")             \
  FIELD(kSourceTable, "source_table")    \
  FIELD(kSourceLengths, "source_lengths") \
  FIELD(kCuRows, "cu_rows")

// FIELD(index, name) of `pools` and `source_pools`: a pool of each layer, then the next field of each layer.
#define BERTGEN_LAYER_POOLS(FIELD) \
  FIELD(kKeys, "keys")             \
  FIELD(kValues, "values")

#define BERTGEN_INDEX(index, name) index,
#define BERTGEN_NAME(index, name) name,

enum StepTable : size_t { BERTGEN_STEP_TABLES(BERTGEN_INDEX) kStepTables };
constexpr const char* kStepTableNames[] = {BERTGEN_STEP_TABLES(BERTGEN_NAME)};
constexpr size_t kStepTablesWithoutSources = kSourceTable;

enum LayerPool : size_t { BERTGEN_LAYER_POOLS(BERTGEN_INDEX) kLayerPools };
constexpr const char* kLayerPoolNames[] = {BERTGEN_LAYER_POOLS(BERTGEN_NAME)};

#undef BERTGEN_INDEX
#undef BERTGEN_NAME

}  // namespace bertgen
