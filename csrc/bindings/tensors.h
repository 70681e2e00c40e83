// The tensors of a caller and their checks: each check returns a pointer to the elements or throws an error that names
// the tensor, the value and what it must be.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "../check.h"
#include "../float_types.h"
#include "dlpack.h"

namespace bertgen {

// A view of a tensor that its caller keeps.
class Tensor {
 public:
  explicit Tensor(const DLTensor& view) : view_(view) {}

  bool is_cpu() const { return view_.device.device_type == kDLCPU; }
  DLDataType dtype() const { return view_.dtype; }
  int64_t dim() const { return view_.ndim; }
  int64_t size(int64_t dim) const { return view_.shape[dim]; }
  int64_t stride(int64_t dim) const { return view_.strides[dim]; }
  void* data_ptr() const { return static_cast<char*>(view_.data) + view_.byte_offset; }

  int64_t numel() const {
    int64_t count = 1;
    for (int64_t i = 0; i < dim(); ++i) count *= size(i);
    return count;
  }

  // All elements lie between these addresses; without elements the end is 0.
  uintptr_t begin() const { return reinterpret_cast<uintptr_t>(data_ptr()); }
  uintptr_t end() const {
    int64_t last = 0;
    for (int64_t i = 0; i < dim(); ++i) {
      if (size(i) == 0) return 0;
      last += (size(i) - 1) * stride(i);
    }
    return begin() + static_cast<uintptr_t>((last + 1) * dtype().bits / 8);
  }

  bool is_contiguous() const {
    int64_t dense = 1;
    for (int64_t i = dim() - 1; i >= 0; --i) {
      if (size(i) != 1 && stride(i) != dense) return numel() == 0;
      dense *= size(i);
    }
    return true;
  }

 private:
  DLTensor view_;
};

// The dtype of elements of a C++ type.
template <class T>
inline constexpr DLDataType kTypeOf{};
template <>
inline constexpr DLDataType kTypeOf<float>{kDLFloat, 32, 1};
template <>
inline constexpr DLDataType kTypeOf<Bfloat16>{kDLBfloat, 16, 1};
template <>
inline constexpr DLDataType kTypeOf<Float16>{kDLFloat, 16, 1};
template <>
inline constexpr DLDataType kTypeOf<double>{kDLFloat, 64, 1};
template <>
inline constexpr DLDataType kTypeOf<bool>{kDLBool, 8, 1};
template <>
inline constexpr DLDataType kTypeOf<uint8_t>{kDLUInt, 8, 1};
template <>
inline constexpr DLDataType kTypeOf<int32_t>{kDLInt, 32, 1};
template <>
inline constexpr DLDataType kTypeOf<int64_t>{kDLInt, 64, 1};

inline bool operator==(const DLDataType& a, const DLDataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

inline std::string name_of(const DLDataType& dtype) {
  const std::string bits = std::to_string(dtype.bits);
  switch (dtype.code) {
    case kDLInt: return "int" + bits;
    case kDLUInt: return "uint" + bits;
    case kDLFloat: return "float" + bits;
    case kDLBfloat: return "bfloat" + bits;
    case kDLComplex: return "complex" + bits;
    case kDLBool: return "bool";
    default: return "number " + std::to_string(dtype.code) + " of DLPack with " + bits + " bits";
  }
}

template <class T>
void check_type(const Tensor& tensor, int64_t dims, const char* name) {
  BERTGEN_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  BERTGEN_CHECK(tensor.dtype() == kTypeOf<T>, name, " has dtype ", name_of(tensor.dtype()), ", not ",
                name_of(kTypeOf<T>));
  BERTGEN_CHECK(tensor.dim() == dims, name, " has ", tensor.dim(), " dimensions, not ", dims);
}

inline void check_size(const Tensor& tensor, int64_t dim, int64_t size, const char* name) {
  BERTGEN_CHECK(tensor.size(dim) == size, name, " has size ", tensor.size(dim), " in dimension ", dim, ", not ", size);
}

// The size of a dimension, or -1, which no tensor has, where the number of dimensions is another: then the check of the
// tensor itself throws.
inline int64_t size_of(const Tensor& tensor, int64_t dims, int64_t dim) {
  return tensor.dim() == dims ? tensor.size(dim) : -1;
}

// A tensor without memory, as that of a subclass, has elements but no address.
template <class T>
T* data_of(const Tensor& tensor, const char* name) {
  BERTGEN_CHECK(tensor.data_ptr() != nullptr || tensor.numel() == 0, name, " has no memory");
  return static_cast<T*>(tensor.data_ptr());
}

// The elements of a dense tensor with these sizes.
template <class T>
T* dense(const Tensor& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  check_type<T>(tensor, static_cast<int64_t>(sizes.size()), name);
  int64_t dim = 0;
  for (const int64_t size : sizes) check_size(tensor, dim++, size, name);
  BERTGEN_CHECK(tensor.is_contiguous(), name, " is not contiguous");
  return data_of<T>(tensor, name);
}

// The type of a tensor of floats in 32 or 16 bits.
inline FloatType float_type(const Tensor& tensor, const char* name) {
  for (const FloatType type : {kFloat32, kBfloat16, kFloat16}) {
    if (tensor.dtype() == dispatch_type(type, [](auto number) { return kTypeOf<decltype(number)>; })) return type;
  }
  fail(name, " has dtype ", name_of(tensor.dtype()), ", not float32, bfloat16 or float16");
}

// As `dense`, of floats of this type.
inline void* dense_floats(const Tensor& tensor, FloatType type, std::initializer_list<int64_t> sizes,
                          const char* name) {
  return dispatch_type(type, [&](auto number) -> void* { return dense<decltype(number)>(tensor, sizes, name); });
}

// As `dense` and `dense_floats`; null without a tensor.
template <class T>
T* dense_or_null(const std::optional<Tensor>& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  return tensor.has_value() ? dense<T>(*tensor, sizes, name) : nullptr;
}
inline void* dense_floats_or_null(const std::optional<Tensor>& tensor, FloatType type,
                                  std::initializer_list<int64_t> sizes, const char* name) {
  return tensor.has_value() ? dense_floats(*tensor, type, sizes, name) : nullptr;
}

// Memory that is written must not be read as another argument meanwhile: numbers of slots, which are checked before,
// would change. The other arguments are tensors, optional ones and lists.

inline bool shares_memory(const Tensor& a, const Tensor& b) {
  return a.begin() < b.end() && b.begin() < a.end();
}
inline bool shares_memory(const Tensor& a, const std::optional<Tensor>& b) {
  return b.has_value() && shares_memory(a, *b);
}
inline bool shares_memory(const Tensor& a, const std::vector<Tensor>& list) {
  return std::any_of(list.begin(), list.end(), [&](const Tensor& b) { return shares_memory(a, b); });
}

template <class... Others>
void check_apart(const char* name, const Tensor& written, const Others&... others) {
  BERTGEN_CHECK((!shares_memory(written, others) && ...), name, " shares memory with another argument");
}

// Lists of the tensors of several layers have one for each layer, or none where no layer has such a tensor.

inline void check_lists(size_t weights, std::initializer_list<size_t> others) {
  BERTGEN_CHECK(weights > 0, "there is no weight");
  for (const size_t other : others) {
    BERTGEN_CHECK(other == 0 || other == weights, "lists of ", weights, " and of ", other, " tensors");
  }
}

inline std::optional<Tensor> element(const std::vector<Tensor>& list, size_t i) {
  return list.empty() ? std::nullopt : std::optional<Tensor>(list[i]);
}

}  // namespace bertgen
