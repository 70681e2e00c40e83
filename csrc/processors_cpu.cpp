#include "processors_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "instruction_sets.h"
#include "selection_cpu.h"

namespace bertgen {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

bool is_token(int64_t token, int64_t vocabulary) { return token >= 0 && token < vocabulary; }

// Integer 0 is the number of sequences, of which each has its length before its ids.
//
// The sum of the biases of a token is made as torch makes it: sequences of one token first, then those of each length
// in the order in which the lengths appear. Only then it is added to the score.
void add_biases(const Processor& p, const int64_t* history, int64_t length, float* scores, int64_t vocabulary,
                ProcessorWorkspace& workspace) {
  std::vector<float>& totals = workspace.values;
  std::vector<int64_t>& touched = workspace.tokens;
  totals.clear();
  touched.clear();
  const int64_t count = p.integers[0];
  const auto add = [&](int64_t token, float bias) {
    if (!is_token(token, vocabulary)) return;
    const auto place = std::find(touched.begin(), touched.end(), token);
    if (place == touched.end()) {
      touched.push_back(token);
      totals.push_back(bias);
    } else {
      totals[place - touched.begin()] += bias;
    }
  };
  const auto for_each_of = [&](int64_t size, const auto& use) {
    const int64_t* sequence = p.integers + 1;
    for (int64_t i = 0; i < count; sequence += 1 + sequence[0], ++i) {
      if (size < 0 || sequence[0] == size) use(i, sequence);
    }
  };
  for_each_of(1, [&](int64_t i, const int64_t* sequence) { add(sequence[1], static_cast<float>(p.floats[i])); });
  for_each_of(-1, [&](int64_t first, const int64_t* of_this_size) {
    const int64_t size = of_this_size[0], before = size - 1;
    bool seen = size == 1 || before > length;
    for_each_of(size, [&](int64_t i, const int64_t*) { seen = seen || i < first; });
    if (seen) return;
    for_each_of(size, [&](int64_t i, const int64_t* sequence) {
      if (std::equal(sequence + 1, sequence + size, history + length - before)) {
        add(sequence[size], static_cast<float>(p.floats[i]));
      }
    });
  });
  for (size_t i = 0; i < touched.size(); ++i) scores[touched[i]] += totals[i];
}

}  // namespace

const char* why_not_processor(const Processor& p, int64_t vocabulary) {
  const auto are_tokens = [&](int64_t first) {
    return std::all_of(p.integers + first, p.integers + p.integer_count,
                       [&](int64_t token) { return is_token(token, vocabulary); });
  };
  const auto has = [&](int64_t integers, int64_t floats) {
    return p.integer_count == integers && p.float_count == floats;
  };
  const char* numbers = "the number of its integers or floats is wrong";
  const char* ids = "it has ids outside the vocabulary";
  switch (p.kind) {
    case kBias: {
      if (p.integer_count < 1 || p.integers[0] != p.float_count) return numbers;
      int64_t place = 1;
      for (int64_t i = 0; i < p.float_count; ++i) {
        if (place >= p.integer_count) return numbers;
        const int64_t size = p.integers[place++];
        if (size < 1 || size > p.integer_count - place) return numbers;
        for (const int64_t last = place + size; place < last; ++place) {
          if (!is_token(p.integers[place], vocabulary)) return ids;
        }
      }
      return place == p.integer_count ? nullptr : numbers;
    }
    case kRepetition: return has(0, 1) ? nullptr : numbers;
    case kNgram: return !has(1, 0) ? numbers : p.integers[0] < 1 ? "the size of its n-grams is not positive" : nullptr;
    case kSuppress: return p.integer_count < 2 || p.float_count != 0 ? numbers : are_tokens(2) ? nullptr : ids;
    case kForce: return p.integer_count < 1 || p.float_count != 0 ? numbers : are_tokens(1) ? nullptr : ids;
    case kDecay: return p.integer_count < 1 || p.float_count != 1 ? numbers : are_tokens(1) ? nullptr : ids;
    case kFinite:
    case kNormalize: return has(0, 0) ? nullptr : numbers;
  }
  return "there is no such kind";
}

namespace {

// The scores of tokens are read before one of them is changed, so that a token that occurs twice is changed once.
void penalize_repetition(const int64_t* tokens, int64_t count, float penalty, float* scores, int64_t vocabulary,
                         ProcessorWorkspace& workspace) {
  std::vector<float>& changed = workspace.values;
  changed.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    if (!is_token(tokens[i], vocabulary)) continue;
    const float score = scores[tokens[i]];
    changed[i] = score < 0 ? score * penalty : score / penalty;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (is_token(tokens[i], vocabulary)) scores[tokens[i]] = changed[i];
  }
}

void block_ngrams(const int64_t* tokens, int64_t count, int64_t size, float* scores, int64_t vocabulary) {
  if (size <= 0 || size > count) return;
  const int64_t before = size - 1;
  const int64_t* newest = tokens + count - before;
  for (int64_t i = 0; i + before < count; ++i) {
    if (std::equal(tokens + i, tokens + i + before, newest) && is_token(tokens[i + before], vocabulary)) {
      scores[tokens[i + before]] = kForbidden;
    }
  }
}

void fill(const Processor& p, int64_t first, float value, float* scores) {
  for (int64_t i = first; i < p.integer_count; ++i) scores[p.integers[i]] = value;
}

// The sum is a loop of its own: in one expression with the product it would be rounded once instead of twice.
void decay(const Processor& p, int64_t length, float* scores, ProcessorWorkspace& workspace) {
  // In long double: log and pow of double would need glibc 2.29.
  const long double beyond = static_cast<long double>(length - p.integers[0]), factor = p.floats[0];
  if (beyond <= 0) return;
  const float growth =
      beyond * std::log(factor) < 80 ? static_cast<float>(static_cast<double>(std::pow(factor, beyond)) - 1) : kLargest;
  std::vector<float>& added = workspace.values;
  added.assign(p.integer_count, 0.0f);
  for (int64_t i = 1; i < p.integer_count; ++i) {
    const float score = scores[p.integers[i]];
    if (std::isfinite(score)) added[i] = std::abs(score) * growth;
  }
  for (int64_t i = 1; i < p.integer_count; ++i) added[i] += scores[p.integers[i]];
  for (int64_t i = 1; i < p.integer_count; ++i) scores[p.integers[i]] = added[i];
}

template <class Set>
BERTGEN_INLINE void make_finite(float* scores, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float score = scores[i];
    scores[i] = score != score ? 0.0f : std::min(std::max(score, -kLargest), kLargest);
  }
}

template <class Set>
BERTGEN_INLINE void ban(const uint8_t* banned, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = banned[i] != 0 ? kForbidden : scores[i];
}

}  // namespace

void process(const std::vector<Processor>& processors, const int64_t* history, int64_t length, float* scores,
             int64_t vocabulary, ProcessorWorkspace& workspace) {
  for (const Processor& p : processors) {
    switch (p.kind) {
      case kBias: add_biases(p, history, length, scores, vocabulary, workspace); break;
      case kRepetition:
        penalize_repetition(history, length, static_cast<float>(p.floats[0]), scores, vocabulary, workspace);
        break;
      case kNgram: block_ngrams(history, length, p.integers[0], scores, vocabulary); break;
      case kSuppress:
        if (p.integers[0] <= length && length < p.integers[1]) fill(p, 2, kForbidden, scores);
        break;
      case kForce:
        if (length == p.integers[0]) {
          std::fill_n(scores, vocabulary, kForbidden);
          fill(p, 1, 0.0f, scores);
        }
        break;
      case kDecay: decay(p, length, scores, workspace); break;
      case kFinite: BERTGEN_DISPATCH_UP_TO(Avx2, make_finite)(scores, vocabulary); break;
      case kNormalize: log_softmax(scores, vocabulary, scores); break;
    }
  }
}

void process_row(const RowOptions& options, const int64_t* tokens, int64_t width, int64_t length, float* scores,
                 int64_t vocabulary, ProcessorWorkspace& workspace) {
  const int64_t count = std::clamp(length, int64_t{0}, width);
  if (options.repetition_penalty != 1) {
    penalize_repetition(tokens, count, options.repetition_penalty, scores, vocabulary, workspace);
  }
  block_ngrams(tokens, count, options.ngram, scores, vocabulary);
  for (int64_t i = 0; length < options.min_length && i < options.end_count; ++i) {
    if (is_token(options.end_tokens[i], vocabulary)) scores[options.end_tokens[i]] = kForbidden;
  }
  if (options.banned != nullptr) BERTGEN_DISPATCH_UP_TO(Avx2, ban)(options.banned, vocabulary, scores);
}

}  // namespace bertgen
