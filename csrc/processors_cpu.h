// The logits processors of one row, in float32 on a CPU: bertgen/decoding/logits_processors.py has the definitions, and
// kernels/process.py that of `process_row`.
#pragma once

#include <cstdint>
#include <vector>

namespace bertgen {

// The numbers of a processor, `integers` and `floats`:
//
// kind        integers                                        floats
// bias        number of sequences; of each: n and its n ids   the bias of each sequence
// repetition                                                  penalty
// ngram       size of the n-grams that may not repeat
// suppress    first, last, ids: forbidden where first <= length < last
// force       length, ids: at this length all others are forbidden, and these get 0
// decay       start, ids                                      factor
// finite
// normalize
enum ProcessorKind : int64_t {
  kBias,
  kRepetition,
  kNgram,
  kSuppress,
  kForce,
  kDecay,
  kFinite,
  kNormalize,
};

// By their numbers; bertgen._C.PROCESSORS.
constexpr const char* kProcessorNames[] = {
    "bias", "repetition", "ngram", "suppress", "force", "decay", "finite", "normalize",
};

struct Processor {
  ProcessorKind kind;
  const int64_t* integers;
  int64_t integer_count;
  const double* floats;
  int64_t float_count;
};

// Null, or why the numbers of a processor are not those of its kind for this vocabulary. `process` does not check them.
const char* why_not_processor(const Processor& processor, int64_t vocabulary);

// Memory of calls of one thread, one after another.
struct ProcessorWorkspace {
  std::vector<float> values;
  std::vector<int64_t> tokens;
};

// Changes the scores of a row with the tokens history [length] so far, by one processor after another.
// Tokens outside the vocabulary change nothing.
void process(const std::vector<Processor>& processors, const int64_t* history, int64_t length, float* scores,
             int64_t vocabulary, ProcessorWorkspace& workspace);

// The options of a row of kernels/process.py.
struct RowOptions {
  float repetition_penalty;
  int64_t ngram;            // 0 allows all
  int64_t min_length;       // `end_tokens` are forbidden to shorter rows
  const int64_t* end_tokens;
  int64_t end_count;
  const uint8_t* banned;    // [vocabulary], not 0 at forbidden tokens; or null
};

// Changes the scores of a row with tokens [width], of which the first `length` count, by its options. Tokens and end
// tokens outside the vocabulary change nothing.
void process_row(const RowOptions& options, const int64_t* tokens, int64_t width, int64_t length, float* scores,
                 int64_t vocabulary, ProcessorWorkspace& workspace);

}  // namespace bertgen
