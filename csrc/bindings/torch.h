// What the extension takes of torch when it is loaded: how tensors are read, and the threads.
//
// Nothing of torch is needed to compile this; both are stable binary interfaces of every torch from 2.10 on.
#pragma once

#include <Python.h>

#include "../threads.h"
#include "tensors.h"

namespace bertgen {

// Takes torch.Tensor and the addresses of torch_parallel_for and torch_get_num_threads, C functions of libtorch_cpu.
// Throws Error where torch.Tensor has no exchange API that this can read.
void use_torch(PyObject* tensor_type, int64_t parallel_for, int64_t get_num_threads);

// The tensor of a Python object. Throws Error before `use_torch` and for other objects, PythonError as torch sets it.
Tensor tensor_of(PyObject* object);

// The threads of torch.
Threads threads();

}  // namespace bertgen
