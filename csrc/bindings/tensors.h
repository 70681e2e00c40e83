// Checks of the tensors of a caller: each returns a pointer to the elements or throws an error that names the tensor,
// the value and what it must be. Only PyTorch's stable ABI is used, so that one binary serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../threads.h"

namespace bertgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
constexpr ScalarType kTypeOf = ScalarType::Undefined;
template <>
inline constexpr ScalarType kTypeOf<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kTypeOf<uint8_t> = ScalarType::Byte;
template <>
inline constexpr ScalarType kTypeOf<int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;

inline void check_type(const Tensor& tensor, ScalarType type, int64_t dims, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has dtype number ", static_cast<int>(tensor.scalar_type()),
                  ", not ", static_cast<int>(type));
  STD_TORCH_CHECK(tensor.dim() == dims, name, " has ", tensor.dim(), " dimensions, not ", dims);
}

inline void check_size(const Tensor& tensor, int64_t dim, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.size(dim) == size, name, " has size ", tensor.size(dim), " in dimension ", dim, ", not ",
                  size);
}

// The size of a dimension, or -1, which no tensor has, where the number of dimensions is another: then the check of the
// tensor itself throws.
inline int64_t size_of(const Tensor& tensor, int64_t dims, int64_t dim) {
  return tensor.dim() == dims ? tensor.size(dim) : -1;
}

// The elements of a dense tensor with these sizes.
template <class T>
T* dense(const Tensor& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  check_type(tensor, kTypeOf<T>, static_cast<int64_t>(sizes.size()), name);
  int64_t dim = 0;
  for (const int64_t size : sizes) check_size(tensor, dim++, size, name);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous");
  return static_cast<T*>(tensor.data_ptr());
}

// As `dense`; null without a tensor.
template <class T>
T* dense_or_null(const std::optional<Tensor>& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  return tensor.has_value() ? dense<T>(*tensor, sizes, name) : nullptr;
}

inline float* output_data(const Tensor& out) { return static_cast<float*>(out.data_ptr()); }

// The threads of torch.
inline Threads threads() {
  const int64_t count = torch::stable::get_num_threads();
  return {count, [count](const std::function<void()>& worker) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) { worker(); });
          }};
}

// Lists of the tensors of several layers have one for each layer, or none where no layer has such a tensor.

inline void check_lists(size_t weights, std::initializer_list<size_t> others) {
  STD_TORCH_CHECK(weights > 0, "there is no weight");
  for (const size_t other : others) {
    STD_TORCH_CHECK(other == 0 || other == weights, "lists of ", weights, " and of ", other, " tensors");
  }
}

inline std::optional<Tensor> element(const std::vector<Tensor>& list, size_t i) {
  return list.empty() ? std::nullopt : std::optional<Tensor>(list[i]);
}

}  // namespace bertgen
