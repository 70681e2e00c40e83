// What the extension reads of DLPack 1.3 (https://dmlc.github.io/dlpack/latest/): the description of a tensor, and the
// table of functions by which a framework fills it in. `torch.Tensor.__dlpack_c_exchange_api__` is a capsule with this
// table. The names and their order are those of the standard; they are the binary interface.
#pragma once

#include <cstdint>

namespace bertgen {

enum DLDeviceType : int32_t { kDLCPU = 1 };

struct DLDevice {
  int32_t device_type, device_id;
};

enum DLDataTypeCode : uint8_t { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4, kDLComplex = 5, kDLBool = 6 };

struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct DLPackVersion {
  uint32_t major, minor;
};

constexpr char kDLPackCapsule[] = "dlpack_exchange_api";

struct DLPackExchangeAPI {
  DLPackVersion version;
  DLPackExchangeAPI* prev_version_api;  // of an older major version, or null
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  // Fills `out` with a view of the tensor, which lives as long as the tensor; -1 with a Python error. May be null.
  int (*dltensor_from_py_object_no_sync)(void* py_object, DLTensor* out);
  void* current_work_stream;
};

}  // namespace bertgen
