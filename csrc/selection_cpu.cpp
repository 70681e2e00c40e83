#include "selection_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace bertgen {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Whether a is better than b, apart from their indices.
bool above(float a, float b) { return a > b || (a != a && b == b); }

float largest(const float* scores, int64_t count) {
  float most = -kInfinity;
  for (int64_t i = 0; i < count; ++i) most = above(scores[i], most) ? scores[i] : most;
  return most;
}

// log of the sum of exp(scores - most)
float log_sum(const float* scores, int64_t count, float most) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(scores[i] - most);
  return static_cast<float>(std::log(sum));
}

}  // namespace

int64_t best(const float* scores, int64_t count) {
  int64_t place = 0;
  for (int64_t i = 1; i < count; ++i) {
    if (above(scores[i], scores[place])) place = i;
  }
  return place;
}

void best_of_rows(const float* scores, int64_t rows, int64_t vocabulary, int64_t* tokens, const Threads& threads) {
  for_each<NoWorkspace>(rows, rows * vocabulary, threads,
                        [&](int64_t r, NoWorkspace&) { tokens[r] = best(scores + r * vocabulary, vocabulary); });
}

void best_scores(const float* scores, int64_t count, int64_t wanted, float* values, int64_t* tokens) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + wanted, order.end(), [&](int64_t a, int64_t b) {
    return above(scores[a], scores[b]) || (!above(scores[b], scores[a]) && a < b);
  });
  for (int64_t i = 0; i < wanted; ++i) values[i] = scores[tokens[i] = order[i]];
}

float log_sum_exp(const float* scores, int64_t count) {
  const float most = largest(scores, count);
  return std::isinf(most) ? most : most + log_sum(scores, count, most);
}

void log_softmax(const float* scores, int64_t count, float* out) {
  const float most = largest(scores, count), sum = log_sum(scores, count, most);
  for (int64_t i = 0; i < count; ++i) out[i] = scores[i] - most - sum;
}

void log_softmax_of_rows(const float* scores, int64_t rows, int64_t vocabulary, float* out, const Threads& threads) {
  for_each<NoWorkspace>(rows, rows * vocabulary, threads, [&](int64_t r, NoWorkspace&) {
    log_softmax(scores + r * vocabulary, vocabulary, out + r * vocabulary);
  });
}

void top_log_probs(const float* scores, int64_t rows, int64_t vocabulary, int64_t count, const float* offsets,
                   int64_t group, float* values, int64_t* indices, const Threads& threads) {
  struct Found {
    std::vector<float> values;
    std::vector<int64_t> tokens, order;
  };
  const int64_t wanted = std::min(count, vocabulary);
  for_each<Found>(rows / group, rows * vocabulary, threads, [&](int64_t g, Found& found) {
    found.values.resize(group * wanted);
    found.tokens.resize(group * wanted);
    found.order.resize(group * wanted);
    for (int64_t i = 0; i < group; ++i) {
      const float* row = scores + (g * group + i) * vocabulary;
      float* row_values = found.values.data() + i * wanted;
      best_scores(row, vocabulary, wanted, row_values, found.tokens.data() + i * wanted);
      const float most = row_values[0], sum = log_sum(row, vocabulary, most);
      for (int64_t j = 0; j < wanted; ++j) {
        const float score = row_values[j];
        const float value = score - most - sum + (offsets == nullptr ? 0.0f : offsets[g * group + i]);
        row_values[j] = score == -kInfinity ? -kInfinity : value;
        found.tokens[i * wanted + j] += i * vocabulary;
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

namespace {

constexpr float kColdest = 1e-30f, kHottest = 1e30f;  // the range of temperatures

float usable(float score) { return score != score ? -kInfinity : std::min(score, kLargest); }

// Philox4x32-10: the four words of counter (block, step, request).
void philox(const SampleKey& key, uint32_t block, uint32_t (&words)[4]) {
  const uint64_t seed = static_cast<uint64_t>(key.seed), request = static_cast<uint64_t>(key.request);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = block, c1 = static_cast<uint32_t>(key.step), c2 = static_cast<uint32_t>(request);
  uint32_t c3 = static_cast<uint32_t>(request >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// -log(-log(1 - u)), where u in (0, 1) is precise near 0: log(1 - u) = log(w) - (u - (1 - w)) with w the rounded 1 - u.
float gumbel(uint32_t word) {
  const float u = std::min(static_cast<float>(word) * 0x1p-32f + 0x1p-33f, 1 - 0x1p-24f);
  const float w = 1 - u;
  return -std::log(u - (1 - w) - std::log(w));
}

// Forbids the scores that top-k, top-p and min-p remove.
void limit(float* scores, int64_t count, const SampleLimits& limits) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  const float most = scores[best(scores, count)];
  if (most == -kInfinity) return;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] < scores[b]; });
  if (limits.top_k > 0 && limits.top_k < count) {
    const float least = scores[order[count - limits.top_k]];
    for (int64_t i = 0; i < count; ++i) scores[i] = scores[i] < least ? -kInfinity : scores[i];
  }
  if (limits.top_p < 1) {
    double sum = 0, below = 0;
    for (int64_t i = 0; i < count; ++i) sum += std::exp(scores[i] - most);
    const float removed = static_cast<float>(1 - static_cast<double>(limits.top_p));
    for (int64_t i = 0; i + 1 < count; ++i) {
      below += std::exp(scores[order[i]] - most);
      if (!(static_cast<float>(below / sum) <= removed)) break;
      scores[order[i]] = -kInfinity;
    }
  }
  if (limits.min_p > 0) {
    for (int64_t i = 0; i < count; ++i) {
      if (std::exp(scores[i] - most) < std::min(limits.min_p, 1.0f)) scores[i] = -kInfinity;
    }
  }
}

}  // namespace

int64_t sample(const float* scores, int64_t vocabulary, const SampleKey& key, const SampleLimits& limits,
               std::vector<float>& workspace, float* log_prob) {
  workspace.resize(vocabulary);
  float* logits = workspace.data();
  for (int64_t i = 0; i < vocabulary; ++i) logits[i] = usable(scores[i]);
  const bool draws = limits.temperature > kColdest;
  if (draws) {
    const float temperature = std::min(limits.temperature, kHottest);
    for (int64_t i = 0; i < vocabulary; ++i) logits[i] = usable(logits[i] / temperature);
    limit(logits, vocabulary, limits);
  }
  const int64_t first = best(logits, vocabulary);
  const float most = logits[first];
  *log_prob = most == -kInfinity ? -kInfinity : 0.0f;
  if (!draws || most == -kInfinity) return first;
  float top = -kInfinity;
  int64_t token = 0;
  uint32_t words[4];
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (i % 4 == 0) philox(key, static_cast<uint32_t>(i / 4), words);
    const float drawn = logits[i] - most + gumbel(words[i % 4]);
    if (drawn > top) {
      top = drawn;
      token = i;
    }
  }
  *log_prob = logits[token] - most - log_sum(logits, vocabulary, most);
  return token;
}

}  // namespace bertgen
