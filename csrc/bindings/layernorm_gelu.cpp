// The functions add_layer_norm and gelu_layer_norm: bertgen/kernels/layernorm_gelu.py has the equations.
#include "../layernorm_gelu_cpu.h"

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

Norm norm_of(const Tensor& weight, const Tensor& shift, int64_t columns) {
  const FloatType type = float_type(weight, "weight");
  return {dense_floats(weight, type, {columns}, "weight"), dense_floats(shift, type, {columns}, "shift"), type};
}

// x           float32 [rows, columns]
// residual    float32 [rows, columns] or absent
// weight, shift
//             float32, bfloat16 or float16, both the same, [columns]
// out         float32 [rows, columns]: filled with LayerNorm(x + residual) weight + shift
// All are dense.
void add_layer_norm_op(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                       const Tensor& shift, double eps, const Tensor& out) {
  check_type<float>(x, 2, "x");
  const int64_t rows = x.size(0), columns = x.size(1);
  const float* x_data = dense<float>(x, {rows, columns}, "x");
  const float* residual_data = dense_or_null<float>(residual, {rows, columns}, "residual");
  const Norm norm = norm_of(weight, shift, columns);
  float* out_data = dense<float>(out, {rows, columns}, "out");
  check_apart("out", out, x, residual, weight, shift);
  add_layer_norm(x_data, residual_data, rows, columns, norm, static_cast<float>(eps), out_data, threads());
}

// out         float32 [rows, columns]: filled with LayerNorm(GELU(x)) weight + shift; the others as above
void gelu_layer_norm_op(const Tensor& x, const Tensor& weight, const Tensor& shift, double eps, const Tensor& out) {
  check_type<float>(x, 2, "x");
  const int64_t rows = x.size(0), columns = x.size(1);
  const float* x_data = dense<float>(x, {rows, columns}, "x");
  const Norm norm = norm_of(weight, shift, columns);
  float* out_data = dense<float>(out, {rows, columns}, "out");
  check_apart("out", out, x, weight, shift);
  gelu_layer_norm(x_data, rows, columns, norm, static_cast<float>(eps), out_data, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("add_layer_norm", add_layer_norm_op, "x, residual, weight, shift, eps, out",
                   "LayerNorm of the sum of x and residual."),
    BERTGEN_KERNEL("gelu_layer_norm", gelu_layer_norm_op, "x, weight, shift, eps, out", "LayerNorm of GELU of x."),
    {},
};

}  // namespace

bool add_layernorm_gelu(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
