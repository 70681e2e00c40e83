// Checks of the slots that attention reads and writes.
#pragma once

#include <cstdint>
#include <vector>

#include "../decode_attention_cpu.h"
#include "tensors.h"

namespace bertgen {

// Pools of keys and values [slots, heads, width] of this type, dense.
inline Pools pools_of(const Tensor& keys, const Tensor& values, FloatType type, const Shape& shape, int64_t slots,
                      const char* keys_name, const char* values_name) {
  return {dense_floats(keys, type, {slots, shape.heads, shape.width}, keys_name),
          dense_floats(values, type, {slots, shape.heads, shape.width}, values_name), type};
}

// The first lengths[r] entries of row r of a table [rows, positions] are slots of a pool of `slots`.
void check_table(const int32_t* table, int64_t positions, const int32_t* lengths, int64_t rows, int64_t slots);

// cu_rows [sources + 1] ascends from 0 to `rows`.
void check_cu_rows(const int32_t* cu_rows, int64_t sources, int64_t rows);

// The slots that rows write, each in a pool of `slots`: int32 or int64 [rows].
std::vector<int64_t> written_slots(const Tensor& tensor, int64_t rows, int64_t slots);

}  // namespace bertgen
