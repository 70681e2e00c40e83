// The operators linear and linears: bertgen/kernels/linear.py has the equation.
#include "../linear_cpu.h"

#include <vector>

#include "tensors.h"

namespace bertgen {
namespace {

// x           float32 [rows, inputs]
// weight      float32 [outputs, inputs]
// bias        float32 [outputs] or absent
// ->          float32 [rows, outputs]: x weight^T + bias
// All are dense.
Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_type(x, ScalarType::Float, 2, "x");
  check_type(weight, ScalarType::Float, 2, "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  const Linear layer{dense<float>(weight, {outputs, inputs}, "weight"), dense_or_null<float>(bias, {outputs}, "bias")};
  const Tensor out = torch::stable::new_empty(x, {rows, outputs});
  linear(x_data, rows, inputs, &layer, 1, outputs, output_data(out), outputs, threads());
  return out;
}

// The same for `count` layers of one shape, side by side.
//
// weights     count of float32 [outputs, inputs]
// biases      count of float32 [outputs], or none
// ->          float32 [rows, count * outputs]
Tensor linears_op(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  check_type(x, ScalarType::Float, 2, "x");
  check_lists(weights.size(), {biases.size()});
  check_type(weights[0], ScalarType::Float, 2, "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weights[0].size(0);
  const int64_t count = static_cast<int64_t>(weights.size());
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  std::vector<Linear> layers(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layers[i] = {dense<float>(weights[i], {outputs, inputs}, "weight"),
                 dense_or_null<float>(element(biases, i), {outputs}, "bias")};
  }
  const Tensor out = torch::stable::new_empty(x, {rows, count * outputs});
  linear(x_data, rows, inputs, layers.data(), count, outputs, output_data(out), count * outputs, threads());
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(bertgen_C, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linears(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear_op));
  m.impl("linears", TORCH_BOX(&linears_op));
}

}  // namespace
}  // namespace bertgen
