// Weights of 4 bits in the tensors of a caller.
#pragma once

#include <optional>

#include "../int4_cpu.h"
#include "tensors.h"

namespace bertgen {

// packed uint8 [rows, columns / 2], scale float32 [rows, columns / group], zero as scale or absent, codebook float32
// [16] or absent; all dense.
Int4 int4_weight(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                 const std::optional<Tensor>& codebook);

inline void check_no_codebook(bool int8, const std::optional<Tensor>& codebook) {
  BERTGEN_CHECK(!int8 || !codebook.has_value(), "integers have no codebook");
}

}  // namespace bertgen
