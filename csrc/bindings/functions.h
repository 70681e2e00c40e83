// The functions of each file of this folder, as it adds them to the module; false with a Python error.
#pragma once

#include <Python.h>

namespace bertgen {

bool add_attention(PyObject* module);
bool add_block_allocator(PyObject* module);
bool add_decode_steps(PyObject* module);
bool add_decoder_step(PyObject* module);
bool add_int4(PyObject* module);
bool add_layernorm_gelu(PyObject* module);
bool add_linear(PyObject* module);
bool add_module_watch(PyObject* module);
bool add_packed_attention(PyObject* module);
bool add_processors(PyObject* module);
bool add_selection(PyObject* module);

}  // namespace bertgen
