// The functions watch_modules and are_unchanged: whether modules of torch still are what they were when something was
// derived from them. A check of hundreds of modules and parameters before each call must cost less than the call.
#include <memory>
#include <string>
#include <vector>

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

// A tensor as its memory was.
struct View {
  DLDataType dtype;
  void* data;
  std::vector<int64_t> shape, strides;

  explicit View(const Tensor& tensor) : dtype(tensor.dtype()), data(tensor.data_ptr()) {
    for (int64_t i = 0; i < tensor.dim(); ++i) {
      shape.push_back(tensor.size(i));
      strides.push_back(tensor.stride(i));
    }
  }

  bool is_of(const Tensor& tensor) const {
    if (tensor.data_ptr() != data || !(tensor.dtype() == dtype)) return false;
    if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
    for (int64_t i = 0; i < tensor.dim(); ++i) {
      if (tensor.size(i) != shape[i] || tensor.stride(i) != strides[i]) return false;
    }
    return true;
  }
};

struct Entry {
  Reference name, value;
};

struct Module {
  Reference module, type;
  std::vector<Entry> attributes, parameters, children;
  std::vector<View> views;  // of the parameters that are not None
};

// Names of attributes of a module.
struct Names {
  Reference forward{PyUnicode_InternFromString("forward")};
  Reference parameters{PyUnicode_InternFromString("_parameters")};
  Reference children{PyUnicode_InternFromString("_modules")};
  std::vector<Reference> hooks;

  Names() {
    for (const char* name : {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}) {
      hooks.emplace_back(PyUnicode_InternFromString(name));
    }
  }
};

struct Watch {
  static constexpr char kName[] = "bertgen.ModuleWatch";
  Names names;
  std::vector<Module> modules;
};

void destroy(PyObject* capsule) { delete static_cast<Watch*>(PyCapsule_GetPointer(capsule, Watch::kName)); }

}  // namespace

template <>
struct Argument<Watch*> {
  explicit Argument(PyObject* object) : value(static_cast<Watch*>(PyCapsule_GetPointer(object, Watch::kName))) {
    if (value == nullptr) throw PythonError();
  }
  Watch* value;
};

namespace {

Reference new_reference(PyObject* object) {
  Py_XINCREF(object);
  return Reference(object);
}

// A borrowed value of a dictionary, or null where it has none.
PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred() != nullptr) throw PythonError();
  return value;
}

// The dictionary of the attributes of a module.
Reference attributes_of(PyObject* module) {
  PyObject* dict = PyObject_GenericGetDict(module, nullptr);
  if (dict == nullptr) {
    PyErr_Clear();
    fail("an argument is no module");
  }
  return Reference(dict);
}

PyObject* find_dict(PyObject* attributes, PyObject* name) {
  PyObject* dict = find(attributes, name);
  BERTGEN_CHECK(dict != nullptr && PyDict_Check(dict), "an argument is no module");
  return dict;
}

// All entries of a dictionary.
std::vector<Entry> entries_of(PyObject* dict) {
  std::vector<Entry> entries;
  Py_ssize_t place = 0;
  PyObject *name, *value;
  while (PyDict_Next(dict, &place, &name, &value)) entries.push_back({new_reference(name), new_reference(value)});
  return entries;
}

// Whether the entries are those of a dictionary, and it has no others where `all`.
bool are_in(const std::vector<Entry>& entries, PyObject* dict, bool all) {
  if (all && PyDict_Size(dict) != static_cast<Py_ssize_t>(entries.size())) return false;
  for (const Entry& entry : entries) {
    if (find(dict, entry.name.get()) != entry.value.get()) return false;
  }
  return true;
}

// modules      of torch
// attributes   names, of those attributes of each module that are watched where they are set
// -> a capsule, which keeps the modules
PyObject* watch_modules(const std::vector<PyObject*>& modules, const std::vector<PyObject*>& attributes) {
  auto watch = std::make_unique<Watch>();
  for (PyObject* module : modules) {
    const Reference dict = attributes_of(module);
    Module one{new_reference(module), Reference(PyObject_Type(module)), {}, {}, {}, {}};
    for (PyObject* name : attributes) {
      if (PyObject* value = find(dict.get(), name)) {
        one.attributes.push_back({new_reference(name), new_reference(value)});
      }
    }
    one.parameters = entries_of(find_dict(dict.get(), watch->names.parameters.get()));
    one.children = entries_of(find_dict(dict.get(), watch->names.children.get()));
    for (const Entry& entry : one.parameters) {
      if (entry.value.get() != Py_None) one.views.emplace_back(tensor_of(entry.value.get()));
    }
    watch->modules.push_back(std::move(one));
  }
  PyObject* capsule = PyCapsule_New(watch.get(), Watch::kName, destroy);
  if (capsule != nullptr) watch.release();
  return capsule;
}

bool is_unchanged(const Module& one, const Names& names) {
  const Reference type(PyObject_Type(one.module.get()));
  if (type.get() != one.type.get()) return false;
  const Reference dict = attributes_of(one.module.get());
  if (find(dict.get(), names.forward.get()) != nullptr) return false;
  for (const Reference& hooks : names.hooks) {
    if (PyDict_Size(find_dict(dict.get(), hooks.get())) != 0) return false;
  }
  if (!are_in(one.attributes, dict.get(), false)) return false;
  if (!are_in(one.children, find_dict(dict.get(), names.children.get()), true)) return false;
  if (!are_in(one.parameters, find_dict(dict.get(), names.parameters.get()), true)) return false;
  auto view = one.views.begin();
  for (const Entry& entry : one.parameters) {
    if (entry.value.get() != Py_None && !(view++)->is_of(tensor_of(entry.value.get()))) return false;
  }
  return true;
}

// -> 1 where each module has the class, the children, the parameters in the memory and the attributes that it had, no
//    hooks and no forward of its own; else 0
int64_t are_unchanged(Watch* watch) {
  for (const Module& module : watch->modules) {
    if (!is_unchanged(module, watch->names)) return 0;
  }
  return 1;
}

PyMethodDef functions[] = {
    BERTGEN_QUICK("watch_modules", watch_modules, "modules, attributes", "Modules as they are now, a capsule."),
    BERTGEN_QUICK("are_unchanged", are_unchanged, "watch", "1 where all modules are as they were."),
    {},
};

}  // namespace

bool add_module_watch(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
