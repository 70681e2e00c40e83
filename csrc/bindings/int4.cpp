// The operators of weights in 4 bits: bertgen/kernels/int4_matmul.py has the equation and the format. In all of them
// packed, scale, zero and codebook are those of `int4_weight`, and `int8` takes the products of integers,
// which have no codebook.
#include "int4.h"

#include <vector>

#include "../int4_int8_cpu.h"
#include "tensors.h"

namespace bertgen {

Int4 int4_weight(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                 const std::optional<Tensor>& codebook) {
  check_type(packed, ScalarType::Byte, 2, "packed");
  check_type(scale, ScalarType::Float, 2, "scale");
  const int64_t rows = packed.size(0), columns = 2 * packed.size(1), groups = scale.size(1);
  const int64_t group = groups > 0 ? columns / groups : 0;
  STD_TORCH_CHECK(group * groups == columns && (group == 32 || group == 64 || group == 128), columns, " columns in ",
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
// ->          float32 [rows, outputs]: x times the transposed weight [outputs, columns] + bias
Tensor int4_matmul_op(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& codebook, bool int8) {
  const Int4 weight = int4_weight(packed, scale, zero, codebook);
  check_type(x, ScalarType::Float, 2, "x");
  const int64_t rows = x.size(0);
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  const Int4Linear layer{weight, dense_or_null<float>(bias, {weight.rows}, "bias")};
  const Tensor out = torch::stable::new_empty(x, {rows, weight.rows});
  check_no_codebook(int8, codebook);
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  multiply(x_data, rows, &layer, 1, output_data(out), weight.rows, threads());
  return out;
}

// The same for `count` layers of one shape and one codebook, side by side.
//
// packed, scales       count of each
// zeros, biases        count of each, or none
// ->                   float32 [rows, count * outputs]
Tensor int4_matmuls_op(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scales,
                       const std::vector<Tensor>& zeros, const std::vector<Tensor>& biases,
                       const std::optional<Tensor>& codebook, bool int8) {
  check_lists(packed.size(), {zeros.size(), biases.size()});
  STD_TORCH_CHECK(scales.size() == packed.size(), packed.size(), " weights with ", scales.size(), " scales");
  check_no_codebook(int8, codebook);
  std::vector<Int4Linear> layers(packed.size());
  for (size_t i = 0; i < packed.size(); ++i) {
    const Int4 weight = int4_weight(packed[i], scales[i], element(zeros, i), codebook);
    const Int4& first = i == 0 ? weight : layers[0].weight;
    check_size(packed[i], 0, first.rows, "packed");
    check_size(packed[i], 1, first.columns / 2, "packed");
    layers[i] = {weight, dense_or_null<float>(element(biases, i), {weight.rows}, "bias")};
  }
  check_type(x, ScalarType::Float, 2, "x");
  const Int4& weight = layers[0].weight;
  const int64_t rows = x.size(0), count = static_cast<int64_t>(layers.size()), stride = count * weight.rows;
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  const Tensor out = torch::stable::new_empty(x, {rows, stride});
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  multiply(x_data, rows, layers.data(), count, output_data(out), stride, threads());
  return out;
}

// out         float32 [rows, columns], dense; filled with the weight
void int4_dequantize_op(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                        const std::optional<Tensor>& codebook, const Tensor& out) {
  const Int4 weight = int4_weight(packed, scale, zero, codebook);
  int4_dequantize(weight, dense<float>(out, {weight.rows, weight.columns}, "out"), threads());
}

STABLE_TORCH_LIBRARY_FRAGMENT(bertgen_C, m) {
  m.def(
      "int4_matmul(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, Tensor? codebook, "
      "bool int8) -> Tensor");
  m.def(
      "int4_matmuls(Tensor x, Tensor[] packed, Tensor[] scales, Tensor[] zeros, Tensor[] biases, Tensor? codebook, "
      "bool int8) -> Tensor");
  m.def("int4_dequantize(Tensor packed, Tensor scale, Tensor? zero, Tensor? codebook, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CPU, m) {
  m.impl("int4_matmul", TORCH_BOX(&int4_matmul_op));
  m.impl("int4_matmuls", TORCH_BOX(&int4_matmuls_op));
  m.impl("int4_dequantize", TORCH_BOX(&int4_dequantize_op));
}

}  // namespace
}  // namespace bertgen
