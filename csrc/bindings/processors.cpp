// The functions of logits processors: bertgen/kernels/process.py and bertgen/decoding/logits_processors.py have the
// definitions.
#include "../processors_cpu.h"

#include <algorithm>
#include <vector>

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

// scores      float32 [rows, vocabulary], changed in place
// tokens      int64 [rows, width]
// lengths, no_repeat_ngram
//             int64 [rows]
// repetition_penalty
//             float32 [rows]
// min_length  int64 [rows] or absent
// end_tokens  int64 [rows, ends], or [ends] of all rows; absent without `min_length`
// banned      uint8 [rows, vocabulary], or [vocabulary] of all rows, or absent
// All are dense.
void process_op(const Tensor& scores, const Tensor& tokens, const Tensor& lengths, const Tensor& repetition_penalty,
                const Tensor& no_repeat_ngram, const std::optional<Tensor>& min_length,
                const std::optional<Tensor>& end_tokens, const std::optional<Tensor>& banned) {
  check_type<float>(scores, 2, "scores");
  const int64_t rows = scores.size(0), vocabulary = scores.size(1), width = size_of(tokens, 2, 1);
  float* score_data = dense<float>(scores, {rows, vocabulary}, "scores");
  const int64_t* token_data = dense<int64_t>(tokens, {rows, width}, "tokens");
  const int64_t* length_data = dense<int64_t>(lengths, {rows}, "lengths");
  const float* penalties = dense<float>(repetition_penalty, {rows}, "repetition_penalty");
  const int64_t* ngrams = dense<int64_t>(no_repeat_ngram, {rows}, "no_repeat_ngram");
  const int64_t* least = dense_or_null<int64_t>(min_length, {rows}, "min_length");
  BERTGEN_CHECK(min_length.has_value() == end_tokens.has_value(), "only one of min_length and end_tokens is given");
  const int64_t* ends = nullptr;
  const uint8_t* bans = nullptr;
  int64_t end_count = 0, end_stride = 0, ban_stride = 0;
  if (end_tokens.has_value()) {
    const bool shared = end_tokens->dim() == 1;
    end_count = shared ? end_tokens->size(0) : size_of(*end_tokens, 2, 1);
    end_stride = shared ? 0 : end_count;
    ends = shared ? dense<int64_t>(*end_tokens, {end_count}, "end_tokens")
                  : dense<int64_t>(*end_tokens, {rows, end_count}, "end_tokens");
  }
  if (banned.has_value()) {
    const bool shared = banned->dim() == 1;
    ban_stride = shared ? 0 : vocabulary;
    bans = shared ? dense<uint8_t>(*banned, {vocabulary}, "banned")
                  : dense<uint8_t>(*banned, {rows, vocabulary}, "banned");
  }
  check_apart("scores", scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned);
  const int64_t numbers = bans == nullptr ? rows * width : rows * vocabulary;
  for_each<ProcessorWorkspace>(
      rows, numbers, threads(), [&](int64_t r, ProcessorWorkspace& workspace) {
        const RowOptions options{penalties[r],
                                 ngrams[r],
                                 least == nullptr ? 0 : least[r],
                                 ends + r * end_stride,
                                 least == nullptr ? 0 : end_count,
                                 bans == nullptr ? nullptr : bans + r * ban_stride};
        process_row(options, token_data + r * width, width, length_data[r], score_data + r * vocabulary, vocabulary,
                    workspace);
      });
}

// Processors, each by its kind, integers and floats as csrc/processors_cpu.h describes them, one after another.
//
// integers, floats
//             int64 and float64 [n] of each processor
// histories   int64 [rows, width], of which the first lengths[r] tokens of row r count
// lengths     int64 [rows]
// scores      float32 [rows, vocabulary], changed in place
// All are dense.
void processors_op(const std::vector<int64_t>& kinds, const std::vector<Tensor>& integers,
                   const std::vector<Tensor>& floats, const Tensor& histories, const Tensor& lengths,
                   const Tensor& scores) {
  check_type<float>(scores, 2, "scores");
  const int64_t rows = scores.size(0), vocabulary = scores.size(1), width = size_of(histories, 2, 1);
  BERTGEN_CHECK(kinds.size() == integers.size() && kinds.size() == floats.size(), kinds.size(), " kinds with ",
                integers.size(), " and ", floats.size(), " tensors");
  std::vector<Processor> processors;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const int64_t integer_count = size_of(integers[i], 1, 0), float_count = size_of(floats[i], 1, 0);
    processors.push_back({static_cast<ProcessorKind>(kinds[i]),
                          dense<int64_t>(integers[i], {integer_count}, "integers"), integer_count,
                          dense<double>(floats[i], {float_count}, "floats"), float_count});
    BERTGEN_CHECK(kinds[i] >= 0 && kinds[i] <= kNormalize, "there is no processor of kind ", kinds[i]);
    const char* reason = why_not_processor(processors.back(), vocabulary);
    BERTGEN_CHECK(reason == nullptr, "processor ", i, " (", kProcessorNames[kinds[i]], ") is not used: ", reason);
  }
  const int64_t* history_data = dense<int64_t>(histories, {rows, width}, "histories");
  const int64_t* length_data = dense<int64_t>(lengths, {rows}, "lengths");
  for (int64_t r = 0; r < rows; ++r) {
    BERTGEN_CHECK(length_data[r] >= 0 && length_data[r] <= width, "lengths[", r, "] is ", length_data[r],
                  ", histories have ", width);
  }
  float* score_data = dense<float>(scores, {rows, vocabulary}, "scores");
  check_apart("scores", scores, integers, floats, histories, lengths);
  for_each<ProcessorWorkspace>(
      rows, rows * vocabulary, threads(), [&](int64_t r, ProcessorWorkspace& workspace) {
        process(processors, history_data + r * width, length_data[r], score_data + r * vocabulary, vocabulary,
                workspace);
      });
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("process", process_op,
                   "scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned",
                   "Penalties and bans of each row, in place."),
    BERTGEN_KERNEL("processors", processors_op,
                   "kinds, integers, floats, histories, lengths, scores",
                   "Logits processors one after another, in place."),
    {},
};

}  // namespace

bool add_processors(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
