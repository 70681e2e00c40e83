// Functions of C++ as functions of a Python module, by the limited API of CPython 3.10.
//
//     void gelu(const Tensor& x, int64_t rows);
//
//     PyMethodDef functions[] = {BERTGEN_KERNEL("gelu", gelu, "x, rows", "GELU of x, in place."), {}};
//
// Arguments are int64_t, double, bool, Tensor, borrowed Python objects, other types with an `Argument`, and of these
// optional ones (None) and vectors (a list or tuple). Results are int64_t, tuples and vectors of int64_t, new references to Python objects, or nothing.
#pragma once

#include <Python.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensors.h"
#include "torch.h"

namespace bertgen {

// Thrown where Python's error is set.
struct PythonError : std::exception {};

[[noreturn]] inline void throw_type_error(const char* message) {
  PyErr_SetString(PyExc_TypeError, message);
  throw PythonError();
}

// An owned reference. Throws PythonError for null, which functions of Python return with an error.
class Reference {
 public:
  explicit Reference(PyObject* object) : object_(object) {
    if (object == nullptr) throw PythonError();
  }
  Reference(Reference&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  ~Reference() { Py_XDECREF(object_); }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

// Arguments: `value` is valid while the argument lives.

template <class T>
struct Argument;

template <>
struct Argument<int64_t> {
  explicit Argument(PyObject* object) : value(PyLong_AsLongLong(object)) {
    if (value == -1 && PyErr_Occurred() != nullptr) throw PythonError();
  }
  int64_t value;
};

// A conversion by a method of the object could change the tensors among the arguments, so float and bool need theirs.

template <>
struct Argument<double> {
  explicit Argument(PyObject* object) {
    if (!PyFloat_Check(object) && !PyLong_Check(object)) throw_type_error("an argument is no float");
    value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred() != nullptr) throw PythonError();
  }
  double value;
};

template <>
struct Argument<bool> {
  explicit Argument(PyObject* object) : value(object == Py_True) {
    if (!PyBool_Check(object)) throw_type_error("an argument is no bool");
  }
  bool value;
};

template <>
struct Argument<PyObject*> {
  explicit Argument(PyObject* object) : value(object) {}
  PyObject* value;
};

template <>
struct Argument<Tensor> {
  explicit Argument(PyObject* object) : value(tensor_of(object)) {}
  Tensor value;
};

template <class T>
struct Argument<std::optional<T>> {
  explicit Argument(PyObject* object) {
    if (object != Py_None) value = Argument<T>(object).value;
  }
  std::optional<T> value;
};

template <class T>
class Argument<std::vector<T>> {
  Reference items_;  // a tuple: another thread may change a list
  std::vector<Argument<T>> arguments_;  // of lists in the list, with their tuples

 public:
  explicit Argument(PyObject* object) : items_(tuple_of(object)) {
    const Py_ssize_t count = PyTuple_Size(items_.get());
    value.reserve(static_cast<size_t>(count));
    arguments_.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      value.push_back(std::move(arguments_.emplace_back(PyTuple_GetItem(items_.get(), i)).value));
    }
  }
  std::vector<T> value;

 private:
  static PyObject* tuple_of(PyObject* object) {
    BERTGEN_CHECK(PyList_Check(object) || PyTuple_Check(object), "an argument is no list and no tuple");
    return PySequence_Tuple(object);
  }
};

// Results

inline PyObject* python_of(int64_t value) { return PyLong_FromLongLong(value); }

inline PyObject* python_of(PyObject* object) { return object; }

inline PyObject* python_of(const std::vector<int64_t>& values) {
  Reference list(PyList_New(static_cast<Py_ssize_t>(values.size())));
  Py_ssize_t i = 0;
  for (const int64_t value : values) PyList_SetItem(list.get(), i++, Reference(python_of(value)).release());
  return list.release();
}

template <class... T>
PyObject* python_of(const std::tuple<T...>& values) {
  Reference tuple(PyTuple_New(sizeof...(T)));
  Py_ssize_t i = 0;
  std::apply(
      [&](const auto&... value) {
        (PyTuple_SetItem(tuple.get(), i++, Reference(python_of(value)).release()), ...);
      },
      values);
  return tuple.release();
}

// Functions

// Other Python threads run while this lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    // While the interpreter exits, Python before 3.14 ends the other threads here. Where that unwinds their stack, it
    // would end the process: no exception may leave a destructor. So the thread waits, as with Python 3.14.
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// The result of `call`, or null with the Python error that its exception stands for.
template <class Call>
PyObject* translated(const Call& call) {
  try {
    return call();
  } catch (const PythonError&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <auto function>
struct Call;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Call<function> {
  template <bool releases_gil>
  static PyObject* run(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    return translated([&] {
      BERTGEN_CHECK(count == sizeof...(Parameters), "there are ", count, " arguments, not ", sizeof...(Parameters));
      return call<releases_gil>(arguments, std::index_sequence_for<Parameters...>());
    });
  }

 private:
  template <bool releases_gil, size_t... i>
  static PyObject* call([[maybe_unused]] PyObject* const* arguments, std::index_sequence<i...>) {
    // Braces: from the first to the last.
    [[maybe_unused]] const std::tuple<Argument<std::decay_t<Parameters>>...> values{
        Argument<std::decay_t<Parameters>>(arguments[i])...};
    const auto run = [&]() -> Result {
      std::conditional_t<releases_gil, WithoutGil, std::tuple<>> gil;
      (void)gil;
      return function(std::get<i>(values).value...);
    };
    if constexpr (std::is_void_v<Result>) {
      run();
      Py_INCREF(Py_None);
      return Py_None;
    } else {
      return python_of(run());
    }
  }
};

template <auto function, bool releases_gil>
PyMethodDef method(const char* name, const char* doc) {
  PyObject* (*run)(PyObject*, PyObject* const*, Py_ssize_t) = &Call<function>::template run<releases_gil>;
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)), METH_FASTCALL, doc};
}

// An entry of a table of functions; all but `function` are string literals. BERTGEN_KERNEL is for a function that takes
// long and does not use Python: other threads run Python meanwhile. BERTGEN_QUICK is for the others.
#define BERTGEN_METHOD(name, function, parameters, doc, releases_gil) \
  ::bertgen::method<function, releases_gil>(name, name "($module, " parameters ", /)\n--\n\n" doc)
#define BERTGEN_QUICK_WITHOUT_ARGUMENTS(name, function, doc) \
  ::bertgen::method<function, false>(name, name "($module, /)\n--\n\n" doc)
#define BERTGEN_KERNEL(name, function, parameters, doc) BERTGEN_METHOD(name, function, parameters, doc, true)
#define BERTGEN_QUICK(name, function, parameters, doc) BERTGEN_METHOD(name, function, parameters, doc, false)

}  // namespace bertgen
