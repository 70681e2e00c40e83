// attention over packed sequences on a CPU; kernels/attention.py has the equation.
//
// A task is some queries of one sequence and one head. It widens their keys and values to float a block at a time, and
// multiplies a block with sixteen queries at a time, which are the lanes of two vectors: so maxima, sums and masks of
// the softmax are those of lanes, and nothing is summed across a vector. The softmax is that of FlashAttention (Dao et
// al. 2022, arXiv 2205.14135): a running maximum and sum, and results that are scaled when the maximum rises.
//
// A query is computed in its lane alone, over the blocks of keys of its own sequence: neither the other sequences and
// queries nor the division into tasks change a bit of its result.
#pragma once

#include <cstdint>

#include "float_types.h"
#include "threads.h"

namespace bertgen {

// [tokens, heads, width] of the type of all tensors of a call, the last dimension dense; strides in elements.
struct TokenHeads {
  const void* data;
  int64_t token, head;
};

struct PackedAttention {
  FloatType type;  // of q, k, v and out
  int64_t heads, width, sequences;
  TokenHeads q, k, v;
  const int32_t *cu_q, *cu_k;  // [sequences + 1], ascending from 0: the first token of each sequence
  bool causal;                 // query i of sequence b sees its keys up to number q_start[b] + i
  const int64_t* q_start;      // [sequences], or null: 0
  const int64_t* key_len;      // [sequences], or null: the keys of a sequence from this one on are hidden
  const bool* key_mask;        // [sequences, key_mask_stride], or null: false hides a key
  int64_t key_mask_stride;     // at least the keys of the longest sequence
  void* out;                   // [tokens of q, heads, width], dense
};

// A query without a visible key gives 0. Hidden keys and values are not read.
void packed_attention(const PackedAttention& attention, const Threads& threads);

}  // namespace bertgen
