// The functions of weights in 4 bits: bertgen/kernels/int4_matmul.py has the equation and the format. In all of them
// packed, scale, zero and codebook are those of `int4_weight`, and `int8` takes the products of integers,
// which have no codebook.
#include "int4.h"

#include <vector>

#include "../int4_int8_cpu.h"
#include "functions.h"
#include "python.h"

namespace bertgen {

Int4 int4_weight(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                 const std::optional<Tensor>& codebook) {
  check_type<uint8_t>(packed, 2, "packed");
  check_type<float>(scale, 2, "scale");
  const int64_t rows = packed.size(0), columns = 2 * packed.size(1), groups = scale.size(1);
  const int64_t group = groups > 0 ? columns / groups : 0;
  BERTGEN_CHECK(group * groups == columns && (group == 32 || group == 64 || group == 128), columns, " columns in ",
                  groups, " groups: a group must be 32, 64 or 128");
  return {dense<uint8_t>(packed, {rows, columns / 2}, "packed"),
          dense<float>(scale, {rows, groups}, "scale"),
          dense_or_null<float>(zero, {rows, groups}, "zero"),
          dense_or_null<float>(codebook, {16}, "codebook"),
          rows,
          columns,
          group};
}

namespace {

// x           float32 [rows, columns], dense
// bias        float32 [outputs], dense, or absent
// out         float32 [rows, outputs], dense: filled with x times the transposed weight [outputs, columns] + bias
void int4_matmul_op(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& codebook, bool int8,
                    const Tensor& out) {
  const Int4 weight = int4_weight(packed, scale, zero, codebook);
  check_type<float>(x, 2, "x");
  const int64_t rows = x.size(0);
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  const Int4Linear layer{weight, dense_or_null<float>(bias, {weight.rows}, "bias")};
  check_no_codebook(int8, codebook);
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  float* out_data = dense<float>(out, {rows, weight.rows}, "out");
  check_apart("out", out, x, packed, scale, zero, bias, codebook);
  multiply(x_data, rows, &layer, 1, out_data, weight.rows, threads());
}

// The same for `count` layers of one shape and one codebook, side by side.
//
// packed, scales       count of each
// zeros, biases        count of each, or none
// out                  float32 [rows, count * outputs], dense
void int4_matmuls_op(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scales,
                     const std::vector<Tensor>& zeros, const std::vector<Tensor>& biases,
                     const std::optional<Tensor>& codebook, bool int8, const Tensor& out) {
  check_lists(packed.size(), {zeros.size(), biases.size()});
  BERTGEN_CHECK(scales.size() == packed.size(), packed.size(), " weights with ", scales.size(), " scales");
  check_no_codebook(int8, codebook);
  std::vector<Int4Linear> layers(packed.size());
  for (size_t i = 0; i < packed.size(); ++i) {
    const Int4 weight = int4_weight(packed[i], scales[i], element(zeros, i), codebook);
    const Int4& first = i == 0 ? weight : layers[0].weight;
    check_size(packed[i], 0, first.rows, "packed");
    check_size(packed[i], 1, first.columns / 2, "packed");
    layers[i] = {weight, dense_or_null<float>(element(biases, i), {weight.rows}, "bias")};
  }
  check_type<float>(x, 2, "x");
  const Int4& weight = layers[0].weight;
  const int64_t rows = x.size(0), count = static_cast<int64_t>(layers.size()), stride = count * weight.rows;
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  float* out_data = dense<float>(out, {rows, stride}, "out");
  check_apart("out", out, x, packed, scales, zeros, biases, codebook);
  multiply(x_data, rows, layers.data(), count, out_data, stride, threads());
}

// out         float32 [rows, columns], dense; filled with the weight
void int4_dequantize_op(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                        const std::optional<Tensor>& codebook, const Tensor& out) {
  const Int4 weight = int4_weight(packed, scale, zero, codebook);
  float* out_data = dense<float>(out, {weight.rows, weight.columns}, "out");
  check_apart("out", out, packed, scale, zero, codebook);
  int4_dequantize(weight, out_data, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("int4_matmul", int4_matmul_op,
                   "x, packed, scale, zero, bias, codebook, int8, out",
                   "x times the transposed weight + bias."),
    BERTGEN_KERNEL("int4_matmuls", int4_matmuls_op,
                   "x, packed, scales, zeros, biases, codebook, int8, out",
                   "int4_matmul of several weights, side by side."),
    BERTGEN_KERNEL("int4_dequantize", int4_dequantize_op,
                   "packed, scale, zero, codebook, out",
                   "The weight in floats."),
    {},
};

}  // namespace

bool add_int4(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
