// Checks of the slots that attention reads and writes.
#pragma once

#include <cstdint>
#include <vector>

#include "../decode_attention_cpu.h"
#include "tensors.h"

namespace bertgen {

// A pool of keys or values: float32 [slots, heads, width], dense.
inline float* pool_data(const Tensor& pool, const Shape& shape, int64_t slots, const char* name) {
  return dense<float>(pool, {slots, shape.heads, shape.width}, name);
}

// The first lengths[r] entries of row r of a table [rows, positions] are slots of a pool of `slots`.
void check_table(const int32_t* table, int64_t positions, const int32_t* lengths, int64_t rows, int64_t slots);

// cu_rows [sources + 1] ascends from 0 to `rows`.
void check_cu_rows(const int32_t* cu_rows, int64_t sources, int64_t rows);

// The slots that rows write, each in a pool of `slots`: int32 or int64 [rows].
std::vector<int64_t> written_slots(const Tensor& tensor, int64_t rows, int64_t slots);

}  // namespace bertgen
