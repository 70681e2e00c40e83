#include "selection_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "vector.h"

namespace bertgen {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Scores that are read twice, for their maximum and then for their sum: few enough for the first cache, and so that a
// sum of them in floats is precise.
constexpr int64_t kBlock = 512;
constexpr int64_t kUnrolled = 4;  // vectors whose sums and maxima are kept apart, so that none waits for another

// Whether a is better than b, apart from their indices.
BERTGEN_INLINE bool above(float a, float b) { return a > b || (a != a && b == b); }

// The best scores that were added, in their order; of equal ones, those that were added first.
struct Best {
  float* values;
  int64_t* tokens;
  int64_t wanted, found = 0;

  BERTGEN_INLINE bool takes(float score) const { return found < wanted || above(score, values[wanted - 1]); }

  BERTGEN_INLINE void add(float score, int64_t token) {
    int64_t place = found < wanted ? found++ : wanted - 1;
    for (; place > 0 && above(score, values[place - 1]); --place) {
      values[place] = values[place - 1];
      tokens[place] = tokens[place - 1];
    }
    values[place] = score;
    tokens[place] = token;
  }
};

// The sum of exp(scores - most), where `most` is the largest score apart from NaN. The sum is NaN where a score is NaN
// or +inf; without a score above -inf it is 0.
//
// exp and log are those of long double: those of float and double would need glibc 2.27 and 2.29.
struct ExponentialSum {
  float most = -kInfinity;
  double sum = 0;

  float log() const { return static_cast<float>(std::log(static_cast<long double>(sum))); }
};

// Scores k .. k + 7, or -inf from `count` on.
BERTGEN_INLINE void load_scores(const float* scores, int64_t k, int64_t count, Vector& part) {
  if (k + kLanes <= count) {
    part = vector_at(scores + k).value;
  } else {
    part = Vector{} - kInfinity;
    for (int64_t i = k; i < count; ++i) part[i - k] = scores[i];
  }
}

// The largest score of a block apart from NaN, and whether there is a NaN.
BERTGEN_INLINE float largest(const float* scores, int64_t count, bool& has_nan) {
  Vector most[kUnrolled];
  Words nan[kUnrolled];
  for (int64_t j = 0; j < kUnrolled; ++j) {
    most[j] = Vector{} - kInfinity;
    nan[j] = Words{};
  }
  for (int64_t k = 0; k < count; k += kUnrolled * kLanes) {
    for (int64_t j = 0; j < kUnrolled; ++j) {
      Vector part;
      load_scores(scores, k + j * kLanes, count, part);
      most[j] = BERTGEN_SELECT(part > most[j], part, most[j]);
      Words bits;
      std::memcpy(&bits, &part, sizeof bits);
      nan[j] |= (bits & 0x7fffffff) > 0x7f800000;
    }
  }
  for (int64_t j = 1; j < kUnrolled; ++j) {
    most[0] = BERTGEN_SELECT(most[j] > most[0], most[j], most[0]);
    nan[0] |= nan[j];
  }
  has_nan = any(nan[0]);
  float result = most[0][0];
  for (int64_t i = 1; i < kLanes; ++i) result = most[0][i] > result ? most[0][i] : result;
  return result;
}

// The sum of exp(scores - most) of a block.
BERTGEN_INLINE float sum_exponentials(const float* scores, int64_t count, float most) {
  Vector sums[kUnrolled] = {};
  for (int64_t k = 0; k < count; k += kUnrolled * kLanes) {
    for (int64_t j = 0; j < kUnrolled; ++j) {
      Vector part;
      load_scores(scores, k + j * kLanes, count, part);
      part = part - most;
      exponential(part);
      sums[j] += part;
    }
  }
  sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += sums[0][i];
  return sum;
}

// Adds the scores of a block that are among the best; their indices begin with `first`.
BERTGEN_INLINE void add_best(const float* scores, int64_t count, int64_t first, bool has_nan, Best& best) {
  for (int64_t k = 0; k < count; k += kLanes) {
    if (!has_nan && best.found == best.wanted) {
      Vector part;
      load_scores(scores, k, count, part);
      if (!any(part > Vector{} + best.values[best.wanted - 1])) continue;
    }
    for (int64_t i = k; i < std::min(count, k + kLanes); ++i) {
      if (best.takes(scores[i])) best.add(scores[i], first + i);
    }
  }
}

// Finds the best scores of a row and its sum in one pass; null for what is not wanted.
template <class Set>
BERTGEN_INLINE void read_scores(const float* scores, int64_t count, Best* best, ExponentialSum* total) {
  for (int64_t first = 0; first < count; first += kBlock) {
    const float* block = scores + first;
    const int64_t size = std::min(kBlock, count - first);
    bool has_nan;
    const float most = largest(block, size, has_nan);
    if (best != nullptr && (has_nan || best->takes(most))) add_best(block, size, first, has_nan, *best);
    if (total == nullptr) continue;
    if (most > total->most) {
      if (total->sum != 0) {
        total->sum *= static_cast<double>(std::exp(static_cast<long double>(total->most) - most));
      }
      total->most = most;
    }
    if (total->most > -kInfinity || has_nan) total->sum += double{sum_exponentials(block, size, total->most)};
  }
}

template <class Set>
BERTGEN_INLINE void subtract(const float* scores, int64_t count, float most, float rest, float* out) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) vector_at(out + k).value = vector_at(scores + k).value - most - rest;
  for (; k < count; ++k) out[k] = scores[k] - most - rest;
}

void read(const float* scores, int64_t count, Best* best, ExponentialSum* total) {
  BERTGEN_DISPATCH_UP_TO(Avx2, read_scores)(scores, count, best, total);
}

}  // namespace

int64_t best(const float* scores, int64_t count) {
  float value;
  int64_t token = 0;
  Best one{&value, &token, 1};
  read(scores, count, &one, nullptr);
  return token;
}

void best_of_rows(const float* scores, int64_t rows, int64_t vocabulary, int64_t* tokens, const Threads& threads) {
  for_each<NoWorkspace>(rows, rows * vocabulary, threads,
                        [&](int64_t r, NoWorkspace&) { tokens[r] = best(scores + r * vocabulary, vocabulary); });
}

void best_scores(const float* scores, int64_t count, int64_t wanted, float* values, int64_t* tokens) {
  Best some{values, tokens, wanted};
  if (wanted > 0) read(scores, count, &some, nullptr);
}

float log_sum_exp(const float* scores, int64_t count) {
  ExponentialSum total;
  read(scores, count, nullptr, &total);
  if (total.most == kInfinity) {
    return std::any_of(scores, scores + count, [](float score) { return score != score; }) ? NAN : kInfinity;
  }
  return total.sum == 0 ? -kInfinity : total.most + total.log();
}

void log_softmax(const float* scores, int64_t count, float* out) {
  ExponentialSum total;
  read(scores, count, nullptr, &total);
  BERTGEN_DISPATCH_UP_TO(Avx2, subtract)(scores, count, total.most, total.log(), out);
}

void log_softmax_of_rows(const float* scores, int64_t rows, int64_t vocabulary, float* out, const Threads& threads) {
  for_each<NoWorkspace>(rows, rows * vocabulary, threads, [&](int64_t r, NoWorkspace&) {
    log_softmax(scores + r * vocabulary, vocabulary, out + r * vocabulary);
  });
}

void top_log_probs(const float* scores, int64_t rows, int64_t vocabulary, int64_t count, const float* offsets,
                   int64_t group, float* values, int64_t* indices, const Threads& threads) {
  struct Found {  // of a group
    std::vector<float> values;
    std::vector<int64_t> tokens, order;
  };
  const int64_t wanted = std::min(count, vocabulary);  // of a row
  for_each<Found>(rows / group, rows * vocabulary, threads, [&](int64_t g, Found& found) {
    found.values.resize(group * wanted);
    found.tokens.resize(group * wanted);
    found.order.resize(group * wanted);
    for (int64_t i = 0; i < group; ++i) {
      float* row_values = found.values.data() + i * wanted;
      int64_t* row_tokens = found.tokens.data() + i * wanted;
      Best some{row_values, row_tokens, wanted};
      ExponentialSum total;
      read(scores + (g * group + i) * vocabulary, vocabulary, &some, &total);
      const float rest = total.log();
      for (int64_t j = 0; j < wanted; ++j) {
        const float score = row_values[j];
        const float value = score - total.most - rest + (offsets == nullptr ? 0.0f : offsets[g * group + i]);
        row_values[j] = score == -kInfinity ? -kInfinity : value;
        row_tokens[j] += i * vocabulary;
      }
    }
    std::iota(found.order.begin(), found.order.end(), 0);
    if (group > 1) {
      std::stable_sort(found.order.begin(), found.order.end(),
                       [&](int64_t a, int64_t b) { return above(found.values[a], found.values[b]); });
    }
    for (int64_t j = 0; j < count; ++j) {
      values[g * count + j] = found.values[found.order[j]];
      indices[g * count + j] = found.tokens[found.order[j]];
    }
  });
}

}  // namespace bertgen
