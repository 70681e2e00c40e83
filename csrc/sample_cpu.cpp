#include "sample_cpu.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "selection_cpu.h"
#include "vector.h"

namespace bertgen {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kColdest = 1e-30f, kHottest = 1e30f;  // the range of temperatures
constexpr float kLargestNoise = 22.9f;                // more than that of the word 0

constexpr int64_t kCounters = kLanes, kWords = 4;     // counters at a time, and the words of each
constexpr int64_t kTokens = kCounters * kWords;       // tokens whose noise is made at a time

// Of top-p.
constexpr int kBuckets = 256;
constexpr float kRange = 90;        // logits this far below another one have no weight beside it
constexpr float kNarrow = 1e-30f;   // logits that lie this close together are not divided any more
constexpr size_t kFewScores = 256;  // are sorted

// logits = scores / temperature; NaN becomes -inf, +inf the largest float. `count` is a multiple of kLanes.
template <class Set>
BERTGEN_INLINE void divide(const float* scores, int64_t count, float temperature, float* logits) {
  const Vector infinities = Vector{} + kInfinity, largest = Vector{} + kLargest;
  for (int64_t k = 0; k < count; k += kLanes) {
    Vector part = vector_at(scores + k).value;
    const Vector infinite = BERTGEN_SELECT(part > largest, largest, -infinities);
    part = BERTGEN_SELECT(part < infinities, part, infinite) / temperature;
    vector_at(logits + k).value = BERTGEN_SELECT(part > largest, largest, part);
  }
}

// weights = exp(logits - most).
template <class Set>
BERTGEN_INLINE void weigh(const float* logits, int64_t count, float most, float* weights) {
  for (int64_t k = 0; k < count; k += kLanes) {
    Vector part = vector_at(logits + k).value - most;
    exponential(part);
    vector_at(weights + k).value = part;
  }
}

// Forbids logits whose `values`, which may be the logits themselves, are below a limit.
template <class Set>
BERTGEN_INLINE void forbid_below(float* logits, int64_t count, const float* values, float limit) {
  const Vector limits = Vector{} + limit, forbidden = Vector{} - kInfinity;
  for (int64_t k = 0; k < count; k += kLanes) {
    const Vector part = vector_at(logits + k).value;
    vector_at(logits + k).value = BERTGEN_SELECT(vector_at(values + k).value < limits, forbidden, part);
  }
}

template <class Set>
BERTGEN_INLINE void subtract(float* logits, int64_t count, float most) {
  for (int64_t k = 0; k < count; k += kLanes) vector_at(logits + k).value = vector_at(logits + k).value - most;
}

// The words of Philox4x32-10 of counters (block, step, request), (block + 1, step, request) and so on.
BERTGEN_INLINE void philox(const SampleKey& key, uint32_t block, uint32_t (&words)[kTokens]) {
  const uint64_t seed = static_cast<uint64_t>(key.seed), request = static_cast<uint64_t>(key.request);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0[kCounters], c1[kCounters], c2[kCounters], c3[kCounters];
  for (int64_t i = 0; i < kCounters; ++i) {
    c0[i] = block + static_cast<uint32_t>(i);
    c1[i] = static_cast<uint32_t>(key.step);
    c2[i] = static_cast<uint32_t>(request);
    c3[i] = static_cast<uint32_t>(request >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kCounters; ++i) {
      const uint64_t p0 = uint64_t{c0[i]} * 0xD2511F53u, p1 = uint64_t{c2[i]} * 0xCD9E8D57u;
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(p1);
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int64_t i = 0; i < kCounters; ++i) {
    words[kWords * i] = c0[i];
    words[kWords * i + 1] = c1[i];
    words[kWords * i + 2] = c2[i];
    words[kWords * i + 3] = c3[i];
  }
}

// -log(-log(1 - u)) of words, where u in (0, 1) is precise near 0: log(1 - u) = log(w) - (u - (1 - w)) with w the
// rounded 1 - u.
BERTGEN_INLINE void gumbel(const uint32_t* words, Vector& noise) {
  Bits bits;
  std::memcpy(&bits, words, sizeof bits);
  const Bits high_bits = bits >> 16, low_bits = bits & 0xffffu;
  Words high_words, low_words;  // two halves, since only signed words become floats
  std::memcpy(&high_words, &high_bits, sizeof high_words);
  std::memcpy(&low_words, &low_bits, sizeof low_words);
  Vector high, low;
  to_floats(high_words, high);
  to_floats(low_words, low);
  const Vector most = Vector{} + (1 - 0x1p-24f);
  Vector u = (high * 65536.0f + low) * 0x1p-32f + 0x1p-33f;
  u = BERTGEN_SELECT(u > most, most, u);
  const Vector w = 1.0f - u;
  Vector log = w;
  logarithm(log);
  log = u - (1.0f - w) - log;
  logarithm(log);
  noise = -log;
}

// The token with the largest sum of logit and noise, the first of equal ones. `count` is a multiple of kTokens.
template <class Set>
BERTGEN_INLINE int64_t draw(const float* logits, int64_t count, const SampleKey& key) {
  float top = -kInfinity;
  int64_t token = 0;
  for (int64_t first = 0; first < count; first += kTokens) {
    Vector most = vector_at(logits + first).value;
    for (int64_t k = kLanes; k < kTokens; k += kLanes) {
      const Vector part = vector_at(logits + first + k).value;
      most = BERTGEN_SELECT(part > most, part, most);
    }
    if (!any(most + kLargestNoise > Vector{} + top)) continue;  // most tokens, where some are probable
    uint32_t words[kTokens];
    philox(key, static_cast<uint32_t>(first / kWords), words);
    for (int64_t k = 0; k < kTokens; k += kLanes) {
      Vector drawn;
      gumbel(words + k, drawn);
      drawn = vector_at(logits + first + k).value + drawn;
      if (!any(drawn > Vector{} + top)) continue;
      for (int64_t i = 0; i < kLanes; ++i) {
        if (drawn[i] > top) {
          top = drawn[i];
          token = first + k + i;
        }
      }
    }
  }
  return token;
}

// The k-th best of `count` logits; `memory` for as many is written to.
float kth_best(const float* logits, int64_t count, int64_t k, float* memory) {
  constexpr int64_t kFew = 128;  // are found in one pass
  if (k <= kFew) {
    int64_t tokens[kFew];
    best_scores(logits, count, k, memory, tokens);
    return memory[k - 1];
  }
  std::copy_n(logits, count, memory);
  std::nth_element(memory, memory + k - 1, memory + count, std::greater<float>());
  return memory[k - 1];
}

// The logits among which the limit of top-p lies.
struct Candidates {
  struct One {
    float logit, weight;
    int64_t token;
  };
  std::vector<One> list;      // in the order of their tokens
  double total = 0, below = 0;  // the weight of all logits, and of those that are below all of the list
  float limit;                // the share of the weight that top-p removes

  bool removes(double weight) const { return static_cast<float>((below + weight) / total) <= limit; }

  // Leaves only those of the bucket in which the limit lies, of buckets of equal width between two logits.
  void narrow(float low, float high) {
    const float scale = (kBuckets - 1) / std::min(high - low, kRange);
    const auto bucket_of = [&](const One& one) {
      return static_cast<int>(std::min((high - one.logit) * scale, static_cast<float>(kBuckets - 1)));
    };
    double weights[kBuckets] = {};
    for (const One& one : list) weights[bucket_of(one)] += double{one.weight};
    int chosen = kBuckets - 1;
    while (chosen > 0 && removes(weights[chosen])) below += weights[chosen--];
    list.erase(std::remove_if(list.begin(), list.end(), [&](const One& one) { return bucket_of(one) != chosen; }),
               list.end());
  }
};

// Forbids the worst logits that together have at most the share 1 - p of the weight, but not the best; of equal logits
// the first are worse. `weights` are those of the logits.
void forbid_improbable(float* logits, int64_t count, const float* weights, float p) {
  Candidates candidates;
  auto& list = candidates.list;
  candidates.limit = static_cast<float>(1 - static_cast<double>(p));
  for (int64_t i = 0; i < count; ++i) {
    if (logits[i] == -kInfinity) continue;
    list.push_back({logits[i], weights[i], i});
    candidates.total += double{weights[i]};
  }
  const auto worse = [](const Candidates::One& a, const Candidates::One& b) { return a.logit < b.logit; };
  for (;;) {
    const auto [low, high] = std::minmax_element(list.begin(), list.end(), worse);
    if (low->logit == high->logit) break;
    if (list.size() <= kFewScores || high->logit - low->logit < kNarrow) {
      std::stable_sort(list.begin(), list.end(), worse);
      break;
    }
    candidates.narrow(low->logit, high->logit);
  }
  size_t removed = 0;
  for (; removed + 1 < list.size() && candidates.removes(double{list[removed].weight}); ++removed) {
    candidates.below += double{list[removed].weight};
    logits[list[removed].token] = -kInfinity;
  }
  BERTGEN_DISPATCH_UP_TO(Avx2, forbid_below)(logits, count, logits, list[removed].logit);
}

}  // namespace

int64_t sample(const float* scores, int64_t vocabulary, const SampleKey& key, const SampleLimits& limits,
               std::vector<float>& workspace, float* log_prob) {
  const bool draws = limits.temperature > kColdest;
  const float temperature = draws ? std::min(limits.temperature, kHottest) : 1.0f;
  const int64_t whole = vocabulary / kLanes * kLanes, count = (vocabulary + kTokens - 1) / kTokens * kTokens;
  workspace.resize(2 * count);
  float *logits = workspace.data(), *weights = logits + count;
  const auto divide_scores = BERTGEN_DISPATCH_UP_TO(Avx2, divide);
  divide_scores(scores, whole, temperature, logits);
  std::fill(logits + whole, logits + count, -kInfinity);
  std::copy(scores + whole, scores + vocabulary, logits + whole);
  divide_scores(logits + whole, count - whole, temperature, logits + whole);

  const int64_t first = best(logits, vocabulary);
  const float most = logits[first];
  *log_prob = most == -kInfinity ? -kInfinity : 0.0f;
  if (!draws || most == -kInfinity) return first;
  const auto forbid = BERTGEN_DISPATCH_UP_TO(Avx2, forbid_below);
  if (limits.top_k > 0 && limits.top_k < vocabulary) {
    forbid(logits, count, logits, kth_best(logits, vocabulary, limits.top_k, weights));
  }
  if (limits.top_p < 1 || limits.min_p > 0) BERTGEN_DISPATCH_UP_TO(Avx2, weigh)(logits, count, most, weights);
  if (limits.top_p < 1) forbid_improbable(logits, count, weights, limits.top_p);
  if (limits.min_p > 0) forbid(logits, count, weights, std::min(limits.min_p, 1.0f));
  BERTGEN_DISPATCH_UP_TO(Avx2, subtract)(logits, count, most);
  const int64_t token = BERTGEN_DISPATCH_UP_TO(Avx2, draw)(logits, count, key);
  *log_prob = logits[token] - log_sum_exp(logits, vocabulary);
  return token;
}

void sample_rows(const float* scores, int64_t rows, int64_t vocabulary, const SampleKey* keys,
                 const SampleLimits* limits, int64_t* tokens, float* log_probs, const Threads& threads) {
  // Much more work than reading the scores.
  for_each<std::vector<float>>(rows, 8 * rows * vocabulary, threads, [&](int64_t r, std::vector<float>& workspace) {
    tokens[r] =
        sample(scores + r * vocabulary, vocabulary, keys[r], limits[r], workspace, log_probs + r);
  });
}

}  // namespace bertgen
