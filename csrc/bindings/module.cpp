// The module bertgen._C with the functions of the other files of this folder. It links to nothing but Python: bertgen/
// ops/extension.py calls `use_torch` before any function that takes tensors.
//
// Its attributes are the names that both sides use, each a string of words: INSTRUCTION_SETS by their numbers, and the
// layout of decoder_step, LAYER_PARTS, STEP_TABLES and LAYER_POOLS, that of decode_steps, DECODER_PARTS, STATIC_TABLES,
// SAMPLING_STATE and BEAM_STATE, and PROCESSORS by their numbers.
#include <Python.h>

#include <string>

#include "../instruction_sets.h"
#include "../processors_cpu.h"
#include "decode_steps_layout.h"
#include "decoder_step_layout.h"
#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

int64_t use_instruction_set_op(int64_t number) { return use_instruction_set(number); }

PyMethodDef functions[] = {
    BERTGEN_QUICK("use_torch", use_torch,
                  "tensor_type, get_num_threads",
                  "Take torch.Tensor and the address of a function of torch."),
    BERTGEN_QUICK("use_instruction_set", use_instruction_set_op,
                  "number",
                  "Use a set, none for -1; the number of the one before."),
    {},
};

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
  using namespace bertgen;
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr,
  };
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
#ifdef Py_GIL_DISABLED
  PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
  if (add_attention(module) && add_block_allocator(module) && add_decode_steps(module) &&
      add_decoder_step(module) && add_int4(module) && add_layernorm_gelu(module) && add_linear(module) &&
      add_module_watch(module) && add_packed_attention(module) && add_processors(module) && add_selection(module) &&
      add_names(module, "INSTRUCTION_SETS", kInstructionSetNames) && add_names(module, "LAYER_PARTS", kLayerParts) &&
      add_names(module, "STEP_TABLES", kStepTableNames) && add_names(module, "LAYER_POOLS", kLayerPoolNames) &&
      add_names(module, "DECODER_PARTS", kDecoderPartNames) && add_names(module, "STATIC_TABLES", kStaticTableNames) &&
      add_names(module, "SAMPLING_STATE", kSamplingStateNames) && add_names(module, "BEAM_STATE", kBeamStateNames) &&
      add_names(module, "PROCESSORS", kProcessorNames)) {
    return module;
  }
  Py_DECREF(module);
  return nullptr;
}
