// The functions linear and linears: bertgen/kernels/linear.py has the equation.
#include "../linear_cpu.h"

#include <vector>

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

// x           float32 [rows, inputs]
// weight      float32, bfloat16 or float16 [outputs, inputs]
// bias        as the weight [outputs], or absent
// out         float32 [rows, outputs]: filled with x weight^T + bias
// All are dense.
void linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  check_type<float>(x, 2, "x");
  const FloatType type = float_type(weight, "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = size_of(weight, 2, 0);
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  const Linear layer{dense_floats(weight, type, {outputs, inputs}, "weight"),
                     dense_floats_or_null(bias, type, {outputs}, "bias")};
  float* out_data = dense<float>(out, {rows, outputs}, "out");
  check_apart("out", out, x, weight, bias);
  linear(x_data, rows, inputs, &layer, 1, outputs, type, out_data, outputs, threads());
}

// The same for `count` layers of one shape and type, side by side.
//
// weights     count of [outputs, inputs]
// biases      count of [outputs], or none
// out         float32 [rows, count * outputs]
void linears_op(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                const Tensor& out) {
  check_type<float>(x, 2, "x");
  check_lists(weights.size(), {biases.size()});
  const FloatType type = float_type(weights[0], "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = size_of(weights[0], 2, 0);
  const int64_t count = static_cast<int64_t>(weights.size());
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  std::vector<Linear> layers(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layers[i] = {dense_floats(weights[i], type, {outputs, inputs}, "weight"),
                 dense_floats_or_null(element(biases, i), type, {outputs}, "bias")};
  }
  const int64_t stride = count * outputs;
  float* out_data = dense<float>(out, {rows, stride}, "out");
  check_apart("out", out, x, weights, biases);
  linear(x_data, rows, inputs, layers.data(), count, outputs, type, out_data, stride, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("linear", linear_op, "x, weight, bias, out", "x weight^T + bias."),
    BERTGEN_KERNEL("linears", linears_op,
                   "x, weights, biases, out",
                   "x weight^T + bias of several weights, side by side."),
    {},
};

}  // namespace

bool add_linear(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
