// What the extension takes of torch when it is loaded: how tensors are read, and the number of threads.
//
// Nothing of torch is needed to compile this; both are stable binary interfaces of every torch from 2.10 on.
#pragma once

#include <Python.h>

#include "../threads.h"
#include "tensors.h"

namespace bertgen {

// Takes torch.Tensor and the address of torch_get_num_threads, a C function of libtorch_cpu. Throws Error where
// torch.Tensor has no exchange API that this can read.
void use_torch(PyObject* tensor_type, int64_t get_num_threads);

// The tensor of a Python object. Throws Error before `use_torch` and for other objects, PythonError as torch sets it.
Tensor tensor_of(PyObject* object);

// As many threads of the process as torch has in the calling thread.
Threads threads();

}  // namespace bertgen
