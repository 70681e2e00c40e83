// The best tokens by the scores of one step, and their log-probabilities, in float32 on a CPU; kernels/best.py and
// top_log_probs.py have the definitions.
//
// Scores of a row are dense. Of two scores the larger is better, and NaN is better than every number; of equal scores,
// and of several NaN, the one with the lower index is better. A row does not depend on the others.
#pragma once

#include <cstdint>

#include "sample_cpu.h"
#include "threads.h"

namespace bertgen {

// The index of the best of `count` scores, which are at least one.
int64_t best(const float* scores, int64_t count);

// The same for each row of scores [rows, vocabulary].
void best_of_rows(const float* scores, int64_t rows, int64_t vocabulary, int64_t* tokens, const Threads& threads);

// The `wanted` best of `count` scores, at most all, and their indices; the best first.
void best_scores(const float* scores, int64_t count, int64_t wanted, float* values, int64_t* tokens);

// log(sum of exp(scores)); NaN where a score is NaN, +inf where one is +inf, -inf where all are -inf.
float log_sum_exp(const float* scores, int64_t count);

// scores -> scores - log(sum of exp(scores)) in `out`, which may be `scores`. All are NaN where a score is NaN or +inf,
// and where all are -inf.
void log_softmax(const float* scores, int64_t count, float* out);

// The same for each row of scores [rows, vocabulary].
void log_softmax_of_rows(const float* scores, int64_t rows, int64_t vocabulary, float* out, const Threads& threads);

// scores [rows, vocabulary], offsets [rows] or null -> values, indices [rows / group, count]: of each `group` of rows
// the largest log_softmax(scores)[row, token] + offsets[row], and row in the group * vocabulary + token. `count` is at
// most group * vocabulary.
//
// Within a row the better score comes first, between rows the larger value, of equal values the earlier row; NaN is
// above every number. The value of a score of -inf is always -inf.
void top_log_probs(const float* scores, int64_t rows, int64_t vocabulary, int64_t count, const float* offsets,
                   int64_t group, float* values, int64_t* indices, const Threads& threads);

}  // namespace bertgen
