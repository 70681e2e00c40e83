// The module bertgen._C. Importing it defines the operators torch.ops.bertgen_C.*, which the other files of this folder
// bind; bertgen/ops/extension.py loads it.
//
// Its attributes are the names that both sides use, each a string of words: INSTRUCTION_SETS by their numbers, and the
// layout of decoder_step, LAYER_PARTS, STEP_TABLES and LAYER_POOLS.
#include <Python.h>

#include <string>

#include "../instruction_sets.h"
#include "decoder_step_layout.h"
#include "tensors.h"

namespace bertgen {
namespace {

// The number of the instruction set that kernels used before; see `use_instruction_set`.
int64_t use_instruction_set_op(int64_t number) { return use_instruction_set(number); }

STABLE_TORCH_LIBRARY_FRAGMENT(bertgen_C, m) { m.def("use_instruction_set(int number) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CompositeExplicitAutograd, m) {  // integers only: no device to dispatch on
  m.impl("use_instruction_set", TORCH_BOX(&use_instruction_set_op));
}

const char* name_of(const char* name) { return name; }
const char* name_of(const LayerPart& part) { return part.name; }

// Adds the names as an attribute; false with a Python error.
template <class Names>
bool add_names(PyObject* module, const char* attribute, const Names& names) {
  std::string words;
  for (const auto& name : names) words += (words.empty() ? "" : " ") + std::string(name_of(name));
  return PyModule_AddStringConstant(module, attribute, words.c_str()) == 0;
}

}  // namespace
}  // namespace bertgen

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr,
  };
  using namespace bertgen;
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr || (add_names(module, "INSTRUCTION_SETS", kInstructionSetNames) &&
                            add_names(module, "LAYER_PARTS", kLayerParts) &&
                            add_names(module, "STEP_TABLES", kStepTableNames) &&
                            add_names(module, "LAYER_POOLS", kLayerPoolNames))) {
    return module;
  }
  Py_DECREF(module);
  return nullptr;
}
