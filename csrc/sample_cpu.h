// A token of each row by its own limits and random numbers, in float32 on a CPU; kernels/sample.py has the definition.
#pragma once

#include <cstdint>
#include <vector>

#include "threads.h"

namespace bertgen {

// The random numbers of a row: the seed is the key, step (its lower 32 bits) and request are parts of the counter.
struct SampleKey {
  int64_t seed, request, step;
};

// A temperature of at most 1e-30 takes the best token; top_k 0, top_p 1 and min_p 0 keep all tokens.
struct SampleLimits {
  float temperature;
  int64_t top_k;
  float top_p, min_p;
};

// Draws a token: the best of scores / temperature + Gumbel noise of the tokens that the limits keep. *log_prob is its
// log-probability among these. NaN counts as -inf, and +inf as the largest float; where all are -inf the token is 0 and
// its log-probability -inf. `workspace` serves one call after another.
int64_t sample(const float* scores, int64_t vocabulary, const SampleKey& key, const SampleLimits& limits,
               std::vector<float>& workspace, float* log_prob);

// The same for each row of scores [rows, vocabulary]; keys, limits, tokens and log_probs are of the rows.
void sample_rows(const float* scores, int64_t rows, int64_t vocabulary, const SampleKey* keys,
                 const SampleLimits* limits, int64_t* tokens, float* log_probs, const Threads& threads);

}  // namespace bertgen
