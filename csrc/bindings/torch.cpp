#include "torch.h"

#include <atomic>
#include <functional>
#include <new>

#include "python.h"

namespace bertgen {
namespace {

using Range = void (*)(int64_t begin, int64_t end, void* context);

// All null before `use_torch`.
PyTypeObject* tensor_type = nullptr;
const DLPackExchangeAPI* exchange = nullptr;
int32_t (*torch_parallel_for)(int64_t begin, int64_t end, int64_t grain, Range range, void* context) = nullptr;
int32_t (*torch_get_num_threads)(uint32_t* count) = nullptr;

}  // namespace

void use_torch(PyObject* type, int64_t parallel_for, int64_t get_num_threads) {
  const Reference capsule(PyObject_GetAttrString(type, "__dlpack_c_exchange_api__"));
  const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.get(), kDLPackCapsule));
  if (api == nullptr) throw PythonError();
  const DLPackVersion newest = api->version;
  while (api != nullptr && api->version.major > 1) api = api->prev_version_api;
  BERTGEN_CHECK(api != nullptr && api->version.major == 1 && api->dltensor_from_py_object_no_sync != nullptr,
                "torch.Tensor has version ", newest.major, ".", newest.minor,
                " of the exchange API of DLPack, without what version 1.3 has");
  BERTGEN_CHECK(parallel_for != 0 && get_num_threads != 0, "an address of a function of torch is 0");
  Py_INCREF(type);
  tensor_type = reinterpret_cast<PyTypeObject*>(type);
  exchange = api;
  torch_parallel_for = reinterpret_cast<decltype(torch_parallel_for)>(parallel_for);
  torch_get_num_threads = reinterpret_cast<decltype(torch_get_num_threads)>(get_num_threads);
}

Tensor tensor_of(PyObject* object) {
  BERTGEN_CHECK(exchange != nullptr, "use_torch was not called");
  BERTGEN_CHECK(PyObject_TypeCheck(object, tensor_type), "an argument is no tensor");
  DLTensor view{};
  if (exchange->dltensor_from_py_object_no_sync(object, &view) != 0) throw PythonError();
  return Tensor(view);
}

namespace {

// A worker that threads of torch run. No exception may reach torch's function, which is one of C.
//
// The exception itself is not kept: std::exception_ptr would need a newer libstdc++ than torch does.
class Work {
 public:
  explicit Work(const std::function<void()>& worker) : worker_(worker) {}

  static void run(int64_t, int64_t, void* work) noexcept { static_cast<Work*>(work)->run(); }

  // Throws as the worker did.
  void check() const {
    if (out_of_memory_) throw std::bad_alloc();
    BERTGEN_CHECK(!failed_, "a worker failed");
  }

 private:
  void run() noexcept {
    try {
      worker_();
    } catch (const std::bad_alloc&) {
      out_of_memory_ = true;
    } catch (...) {
      failed_ = true;
    }
  }

  const std::function<void()>& worker_;
  std::atomic<bool> out_of_memory_{false}, failed_{false};
};

}  // namespace

Threads threads() {
  uint32_t count = 1;
  BERTGEN_CHECK(torch_get_num_threads(&count) == 0, "torch_get_num_threads failed");
  return {count, [count](const std::function<void()>& worker) {
            Work work(worker);
            const int32_t status = torch_parallel_for(0, count, 1, Work::run, &work);
            work.check();
            BERTGEN_CHECK(status == 0, "torch_parallel_for failed");
          }};
}

}  // namespace bertgen
