#include "torch.h"

#include "../team.h"
#include "python.h"

namespace bertgen {
namespace {

// All null before `use_torch`.
PyTypeObject* tensor_type = nullptr;
const DLPackExchangeAPI* exchange = nullptr;
int32_t (*torch_get_num_threads)(uint32_t* count) = nullptr;

}  // namespace

void use_torch(PyObject* type, int64_t get_num_threads) {
  const Reference capsule(PyObject_GetAttrString(type, "__dlpack_c_exchange_api__"));
  const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.get(), kDLPackCapsule));
  if (api == nullptr) throw PythonError();
  const DLPackVersion newest = api->version;
  while (api != nullptr && api->version.major > 1) api = api->prev_version_api;
  BERTGEN_CHECK(api != nullptr && api->version.major == 1 && api->dltensor_from_py_object_no_sync != nullptr,
                "torch.Tensor has version ", newest.major, ".", newest.minor,
                " of the exchange API of DLPack, without what version 1.3 has");
  BERTGEN_CHECK(get_num_threads != 0, "the address of torch_get_num_threads is 0");
  Py_INCREF(type);
  tensor_type = reinterpret_cast<PyTypeObject*>(type);
  exchange = api;
  torch_get_num_threads = reinterpret_cast<decltype(torch_get_num_threads)>(get_num_threads);
}

Tensor tensor_of(PyObject* object) {
  BERTGEN_CHECK(exchange != nullptr, "use_torch was not called");
  BERTGEN_CHECK(PyObject_TypeCheck(object, tensor_type), "an argument is no tensor");
  DLTensor view{};
  if (exchange->dltensor_from_py_object_no_sync(object, &view) != 0) throw PythonError();
  return Tensor(view);
}

Threads threads() {
  uint32_t count = 1;
  BERTGEN_CHECK(torch_get_num_threads(&count) == 0, "torch_get_num_threads failed");
  return team_of(count);
}

}  // namespace bertgen
