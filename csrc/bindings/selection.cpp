// The functions of the choice of tokens: bertgen/kernels/best.py, top_log_probs.py and sample.py have the definitions.
// In all of them scores are float32 [rows, vocabulary] with a token to choose, and all tensors are dense.
#include "../selection_cpu.h"

#include <vector>

#include "../sample_cpu.h"
#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

const float* scores_of(const Tensor& scores) {
  check_type<float>(scores, 2, "scores");
  BERTGEN_CHECK(scores.size(1) > 0, "scores have no column");
  return dense<float>(scores, {scores.size(0), scores.size(1)}, "scores");
}

// out         int64 [rows]: the best token of each row
void best_op(const Tensor& scores, const Tensor& out) {
  const float* data = scores_of(scores);
  const int64_t rows = scores.size(0);
  int64_t* tokens = dense<int64_t>(out, {rows}, "out");
  check_apart("out", out, scores);
  best_of_rows(data, rows, scores.size(1), tokens, threads());
}

// out         float32 [rows, vocabulary]; may be `scores`
void log_softmax_op(const Tensor& scores, const Tensor& out) {
  const float* data = scores_of(scores);
  float* out_data = dense<float>(out, {scores.size(0), scores.size(1)}, "out");
  if (out_data != data) check_apart("out", out, scores);
  log_softmax_of_rows(data, scores.size(0), scores.size(1), out_data, threads());
}

// offsets     float32 [rows] or absent
// values, indices
//             float32 and int64 [rows / group, count]
void top_log_probs_op(const Tensor& scores, int64_t count, const std::optional<Tensor>& offsets, int64_t group,
                      const Tensor& values, const Tensor& indices) {
  const float* data = scores_of(scores);
  const int64_t rows = scores.size(0), vocabulary = scores.size(1);
  BERTGEN_CHECK(group > 0 && rows % group == 0, rows, " rows in groups of ", group);
  BERTGEN_CHECK(count > 0 && (count - 1) / group < vocabulary, "count is ", count, ", there are ", group, " rows of ",
                vocabulary);
  const float* offset_data = dense_or_null<float>(offsets, {rows}, "offsets");
  float* value_data = dense<float>(values, {rows / group, count}, "values");
  int64_t* index_data = dense<int64_t>(indices, {rows / group, count}, "indices");
  check_apart("values", values, scores, offsets, indices);
  check_apart("indices", indices, scores, offsets);
  top_log_probs(data, rows, vocabulary, count, offset_data, group, value_data, index_data, threads());
}

// seed, request, step, top_k
//             int64 [rows]
// temperature, top_p, min_p
//             float32 [rows]
// tokens, log_probs
//             int64 and float32 [rows]
void sample_op(const Tensor& scores, const Tensor& seed, const Tensor& request, const Tensor& step,
               const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& min_p,
               const Tensor& tokens, const Tensor& log_probs) {
  const float* data = scores_of(scores);
  const int64_t rows = scores.size(0);
  const int64_t* seeds = dense<int64_t>(seed, {rows}, "seed");
  const int64_t* requests = dense<int64_t>(request, {rows}, "request");
  const int64_t* steps = dense<int64_t>(step, {rows}, "step");
  const float* temperatures = dense<float>(temperature, {rows}, "temperature");
  const int64_t* top_ks = dense<int64_t>(top_k, {rows}, "top_k");
  const float* top_ps = dense<float>(top_p, {rows}, "top_p");
  const float* min_ps = dense<float>(min_p, {rows}, "min_p");
  int64_t* token_data = dense<int64_t>(tokens, {rows}, "tokens");
  float* log_prob_data = dense<float>(log_probs, {rows}, "log_probs");
  check_apart("tokens", tokens, scores, seed, request, step, temperature, top_k, top_p, min_p, log_probs);
  check_apart("log_probs", log_probs, scores, seed, request, step, temperature, top_k, top_p, min_p);
  std::vector<SampleKey> keys(static_cast<size_t>(rows));
  std::vector<SampleLimits> limits(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    keys[r] = {seeds[r], requests[r], steps[r]};
    limits[r] = {temperatures[r], top_ks[r], top_ps[r], min_ps[r]};
  }
  sample_rows(data, rows, scores.size(1), keys.data(), limits.data(), token_data, log_prob_data, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("best", best_op, "scores, out", "The best token of each row."),
    BERTGEN_KERNEL("log_softmax", log_softmax_op, "scores, out", "Log-softmax of each row."),
    BERTGEN_KERNEL("top_log_probs", top_log_probs_op,
                   "scores, count, offsets, group, values, indices",
                   "The best log-probabilities of each group of rows."),
    BERTGEN_KERNEL("sample", sample_op,
                   "scores, seed, request, step, temperature, top_k, top_p, min_p, tokens, log_probs",
                   "A token of each row by its limits and random numbers."),
    {},
};

}  // namespace

bool add_selection(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
