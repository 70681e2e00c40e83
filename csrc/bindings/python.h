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

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensors.h"
#include "torch.h"

namespace bertgen {

// Thrown where Python's error is set.
struct PythonError : std::exception {};

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

// Arguments

template <class T>
struct Argument;

template <>
struct Argument<int64_t> {
  static int64_t of(PyObject* object) {
    const long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred() != nullptr) throw PythonError();
    return value;
  }
};

template <>
struct Argument<double> {
  static double of(PyObject* object) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred() != nullptr) throw PythonError();
    return value;
  }
};

template <>
struct Argument<bool> {
  static bool of(PyObject* object) {
    const int value = PyObject_IsTrue(object);
    if (value < 0) throw PythonError();
    return value != 0;
  }
};

template <>
struct Argument<PyObject*> {
  static PyObject* of(PyObject* object) { return object; }
};

template <>
struct Argument<Tensor> {
  static Tensor of(PyObject* object) { return tensor_of(object); }
};

template <class T>
struct Argument<std::optional<T>> {
  static std::optional<T> of(PyObject* object) {
    return object == Py_None ? std::nullopt : std::optional<T>(Argument<T>::of(object));
  }
};

template <class T>
struct Argument<std::vector<T>> {
  static std::vector<T> of(PyObject* object) {
    const bool is_list = PyList_Check(object);
    BERTGEN_CHECK(is_list || PyTuple_Check(object), "an argument is no list and no tuple");
    const Py_ssize_t count = is_list ? PyList_Size(object) : PyTuple_Size(object);
    std::vector<T> values;
    values.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* item = is_list ? PyList_GetItem(object, i) : PyTuple_GetItem(object, i);
      if (item == nullptr) throw PythonError();
      values.push_back(Argument<T>::of(item));
    }
    return values;
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
  ~WithoutGil() { PyEval_RestoreThread(state_); }
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
  using Values = std::tuple<std::decay_t<Parameters>...>;

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
    [[maybe_unused]] const Values values{Argument<std::decay_t<Parameters>>::of(arguments[i])...};
    const auto run = [&]() -> Result {
      std::conditional_t<releases_gil, WithoutGil, std::tuple<>> gil;
      (void)gil;
      return function(std::get<i>(values)...);
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
#define BERTGEN_KERNEL(name, function, parameters, doc) BERTGEN_METHOD(name, function, parameters, doc, true)
#define BERTGEN_QUICK(name, function, parameters, doc) BERTGEN_METHOD(name, function, parameters, doc, false)

}  // namespace bertgen
